"""Tests that need programs which a target of the Makefile fetches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["mark_below"]


def mark_below(
    folder: Path, items: Iterable[pytest.Item], name: str, *, absent: str | None
) -> None:
    """Mark the tests below a folder.

    Args:
        folder: The folder.
        items: All tests.
        name: The mark.
        absent: Why they are skipped; None where what they need is there.
    """
    for item in items:
        if folder in item.path.parents:
            item.add_marker(name)
            if absent is not None:
                item.add_marker(pytest.mark.skip(reason=absent))
