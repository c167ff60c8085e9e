"""Readers of texts that users write: settings, recipes, tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.reader_fuzz.reader import Reader

__all__ = ["TEXTS"]

TEXTS: Final[Mapping[str, Reader]] = {}
