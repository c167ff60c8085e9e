"""The two exports, and copies of them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.extend.example import TASK, Both

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


@pytest.fixture(scope="package")
def both(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Return an export with one adapter, and one with both, not verified."""
    from lora_export.cli import run

    base = tiny.base("bert", TASK)
    first, second = tiny.adapter(base, r=4, seed=1), tiny.adapter(base, r=2, seed=3)
    folder = tmp_path_factory.mktemp("extend")
    start = ["export", "--quiet", "--base", str(base), "--task", TASK, f"--adapter=first={first}"]
    assert run([*start, "--out", str(folder / "alone")]) == 0
    assert run([*start, f"--adapter=second={second}", "--out", str(folder / "together")]) == 0
    return Both(base, first, second, folder / "alone", folder / "together")


@pytest.fixture
def alone(both: Both, tmp_path: Path) -> Path:
    shutil.copytree(both.alone, tmp_path / "alone")
    return tmp_path / "alone"


@pytest.fixture
def together(both: Both, tmp_path: Path) -> Path:
    shutil.copytree(both.together, tmp_path / "together")
    return tmp_path / "together"
