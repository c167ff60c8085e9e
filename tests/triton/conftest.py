"""Exports of each mode, built once for the tests of model repositories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.triton import served_exports

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def served(tiny, tmp_path_factory) -> dict[str, Path]:
    """An export of each mode, for model repositories; copy one before changing it."""
    return served_exports(tiny, tmp_path_factory.mktemp("served"), verified=["merged"])
