"""The example's export, and copies of it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import command
from tests.end_to_end.merge_and_build.example import TASK, Built

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


@pytest.fixture(scope="session")
def built(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return a base with a head and two adapters, built and verified in a process of its own."""
    base = tiny.base("bert", TASK, tokenizer=True)
    adapters = {
        "first": tiny.adapter(base, r=4, seed=1),
        "second": tiny.adapter(base, r=8, alpha=4, seed=2, bias="lora_only", use_rslora=True),
    }
    out = tmp_path_factory.mktemp("built") / "out"
    given = [f"--adapter={name}={path}" for name, path in adapters.items()]
    result = command(
        "merge-and-build", "--base", base, *given, "--task", TASK,
        "--labels", "red,green,blue", "--max-ratio", 50, "--json", "--out", out,
    )  # fmt: skip
    return Built(base, adapters, out, result)


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Path:
    """Return a copy of the export, to be changed."""
    shutil.copytree(built.out, tmp_path / "copy")
    return tmp_path / "copy"
