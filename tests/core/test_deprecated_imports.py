"""Imports that the documentation of an earlier version showed go on working, with a warning."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOVED = {
    ("lora_export.base.manifest", "read_manifest"): "lora_export.core.manifest",
    ("lora_export.device.opening", "open_live"): "lora_export.ondevice.trt.plan_opening",
    ("lora_export.benchmark", "bench"): "lora_export",
    ("lora_export.maintenance", "verify"): "lora_export",
    ("lora_export.maintenance", "add"): "lora_export",
    ("lora_export.exports.companions", "copy_companions"): (
        "lora_export.exports.adapter_companions"
    ),
}
"""What README.md, docs/adapters.md, docs/engines.md and docs/latency.md showed, and where it is."""

STAYED = [
    ("lora_export.runtime", "open_export"),
    ("lora_export.runtime.trt", "open_trt"),
    ("lora_export.exports.packs", "read_pack"),
    ("lora_export", "load_recipe"),
    ("lora_export.pytest_plugin", "lora_export_bench"),
]


@pytest.mark.parametrize(("old", "name"), MOVED)
def test_a_moved_name_is_the_new_one_and_says_where_it_is(old, name) -> None:
    new = MOVED[old, name]
    module = importlib.import_module(old)
    with pytest.warns(DeprecationWarning, match=re.escape(f"use {new}.{name} in place of {old}")):
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(new), name)


@pytest.mark.parametrize(("module", "name"), STAYED)
def test_a_name_that_stayed_does_not_warn(module, name) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert getattr(importlib.import_module(module), name)


def test_the_warning_points_at_the_users_line(tmp_path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("import os\nfrom lora_export.base.manifest import read_manifest\n")
    done = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", script],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    (line,) = [each for each in done.stderr.splitlines() if "lora_export.base" in each and
               "Warning" in each]  # fmt: skip
    assert line.startswith(f"{script}:2: DeprecationWarning: lora_export.base.manifest is gone")


@pytest.mark.parametrize("old", sorted({old for old, _ in MOVED}))
def test_importing_an_old_place_is_silent_and_other_names_are_not_there(old) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = importlib.reload(importlib.import_module(old))
        for name in ("no_such_name", "__wrapped__"):
            with pytest.raises(AttributeError, match=old):
                getattr(module, name)


def test_the_documentation_shows_no_old_place() -> None:
    """Only the page on stability lists them."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {
        f"{page.name}: {found}"
        for page in pages
        if page.name not in {"stability.md", "architecture.md"}
        for found in re.findall(
            r"lora_export[./](?:base|device|benchmark|maintenance)\b", page.read_text("utf-8")
        )
    }
    assert shown == set()
