"""Every reader by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tools.reader_fuzz.archives import ARCHIVES
from tools.reader_fuzz.bases import BASES
from tools.reader_fuzz.exports import EXPORTS
from tools.reader_fuzz.fleets import FLEETS
from tools.reader_fuzz.graphs import GRAPHS
from tools.reader_fuzz.records import RECORDS
from tools.reader_fuzz.shipped_graphs import SHIPPED_GRAPHS
from tools.reader_fuzz.stores import STORES
from tools.reader_fuzz.tensors import TENSORS
from tools.reader_fuzz.texts import TEXTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.reader_fuzz.reader import Reader

__all__ = ["READERS"]

READERS: Final[Mapping[str, Reader]] = {
    **TENSORS, **BASES, **GRAPHS, **ARCHIVES, **RECORDS, **TEXTS, **FLEETS, **STORES,
    **SHIPPED_GRAPHS, **EXPORTS,
}  # fmt: skip
"""The readers."""
