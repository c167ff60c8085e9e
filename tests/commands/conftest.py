"""A base and an adapter, written by hand, and where a command writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.handmade import save_adapter, save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A handmade base and adapter, and where the merge goes."""
    return save_checkpoint(tmp_path / "b"), save_adapter(tmp_path / "a"), tmp_path / "p" / "out"
