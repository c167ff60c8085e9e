"""Tests that share what is costly to make run in one of pytest-xdist's workers.

A fixture of a module or a package is made once in each worker that runs one of its tests, and two
workers that need the same graph at the same time both trace it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["group_tests"]

_TESTS: Final = Path(__file__).parent.parent
_SHARING: Final = frozenset(
    _TESTS / each
    for each in (
        "bundle",
        "end_to_end/batched",
        "end_to_end/extend",
        "end_to_end/merge_and_build",
        "exports/merged_adapters",
        "layouts",
        "runtime/session",
    )
)
"""Folders whose ``conftest.py`` makes exports for all files of the folder."""


def group_tests(items: Iterable[pytest.Item]) -> None:
    """Give each test without an ``xdist_group`` that of its file, or of its folder.

    Args:
        items: All tests that were collected.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            folder = item.path.parent
            shared = folder if folder in _SHARING else item.path
            item.add_marker(pytest.mark.xdist_group(shared.as_posix()))
