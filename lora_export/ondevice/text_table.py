"""Plain text for people: aligned rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.ondevice.printable import CELL_LIMIT, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["aligned"]


def aligned(rows: Iterable[Sequence[str]], *, indent: int = 2) -> list[str]:
    """Return one line per row, its cells in columns; each is escaped and cut.

    >>> aligned([("rank", "8"), ("scale", "2")])
    ['  rank   8', '  scale  2']
    """
    table = [tuple(printable(cell, CELL_LIMIT) for cell in row) for row in rows]
    columns = max(map(len, table), default=0)
    widths = [
        max((len(row[i]) for row in table if i < len(row)), default=0) for i in range(columns)
    ]
    return [
        (" " * indent + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=False))).rstrip()
        for row in table
    ]
