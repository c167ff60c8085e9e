"""The inputs that a test spoils."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.bad_input.spoiling import (
    TASK,
    Inputs,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


@pytest.fixture
def inputs(tiny: TinyModels, tmp_path: Path) -> Inputs:
    base = tiny.base("bert", TASK)
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(tiny.adapter(base, seed=1), tmp_path / "adapter")
    (tmp_path / "parent").mkdir()
    return Inputs(tmp_path / "base", tmp_path / "adapter", tmp_path / "parent" / "out")
