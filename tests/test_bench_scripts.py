"""The scripts of bench/: each is run by `make bench`, and each has a line in the table."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1] / "bench"
SCRIPTS = {path.stem for path in BENCH.glob("[!_]*.py")} - {"run_all"}


def test_every_script_is_run_with_the_others():
    done = subprocess.run(
        [sys.executable, str(BENCH / "run_all.py"), "--help"],
        capture_output=True, text=True, check=True, env={"COLUMNS": "500"},
    )  # fmt: skip
    named = re.search(r"--only \{([a-z0-9_,]+)\}", done.stdout)
    assert named is not None
    assert set(named[1].split(",")) == SCRIPTS


def test_every_script_is_in_the_table():
    rows = re.findall(
        r"^\| `([a-z0-9_]+)\.py` \|", (BENCH / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(rows) == sorted(SCRIPTS)


def test_every_module_that_a_script_names_exists():
    """Some are named in strings, for processes of their own, where no linter looks."""
    named = {
        name
        for path in BENCH.glob("*.py")
        for name in re.findall(
            r"^(?:from|import) (lora_export[\w.]*)|\b(lora_export\.(?:cli|commands|core)\.\w+)",
            path.read_text("utf-8"),
            re.MULTILINE,
        )
        for name in filter(None, name)
    }
    assert len(named) > 3
    assert [name for name in sorted(named) if importlib.util.find_spec(name) is None] == []
