"""The guides of optimum, sentence-transformers and transformers.js, run as they are written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.pages import first_missing, read_blocks, run_page
from tests.test_docs_run import desk, shelf  # noqa: F401  (fixtures)
from tools.fetch_npm_client import node

ROOT = Path(__file__).resolve().parents[3]
GUIDES = (
    "sentence-transformers",
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("optimum", "transformers-js")),
)


def command(script, clients, folder):
    """Return what runs a script of a guide; packages of npm are found beside it."""
    if script.endswith(".py"):
        return [clients / "optimum" / "bin" / "python", script]
    modules = folder / "node_modules"
    if not modules.exists():
        modules.symlink_to(clients / "transformers-js" / "node_modules")
    return [node() / "bin" / "node", script]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_prints_what_it_shows(guide, clients, desk):  # noqa: F811
    page = ROOT / "docs" / f"{guide}.md"
    if not (desk / "models" / "all-MiniLM-L6-v2").exists():
        pytest.skip("needs the checkpoint: make model")
    run_page(page, desk)
    blocks = read_blocks(page)
    scripts = [at for at, block in enumerate(blocks) if block.kind == "save"]
    assert scripts
    for at in scripts:
        done = subprocess.run(
            command(blocks[at].argument, clients, desk),
            cwd=desk,
            env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not done.returncode, done.stderr[-3000:]
        missing = first_missing(blocks[at + 1].text, done.stdout)
        assert missing is None, (missing, done.stdout)
