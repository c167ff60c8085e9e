"""A table of numbers between 0 and 1 as a picture: SVG, self-contained, readable without colours.

Light and dark follow the reader's setting; each cell has its value as a tooltip.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from lora_export.ondevice.printable import CELL_LIMIT, printable
from lora_export.report.colours import STOPS, colour

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.commands.analyze.spectrum import Float64Array

__all__ = ["heatmap"]

_CELL: Final = 22
_LEFT: Final = 56
_TOP: Final = 46
_GAP: Final = 48
_LEGEND: Final = 40
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#222}"
    ".page{fill:#fff}.frame{fill:none;stroke:#888}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.page{fill:#181818}}"
)


def heatmap(title: str, panels: Sequence[tuple[str, Float64Array]]) -> str:
    """Return an SVG with one panel per table, rows i downwards, columns j to the right.

    Args:
        title: What is shown.
        panels: A caption and a table ``[rows, columns]`` each, values from 0 to 1.
    """
    parts: list[str] = []
    shown = _text(title)
    x = _LEFT
    tallest = max(len(table) for _, table in panels)
    for caption, table in panels:
        parts += _panel(caption, table, x)
        x += max(len(table[0]) * _CELL, 7 * len(caption)) + _GAP
    height = _TOP + tallest * _CELL + _GAP
    parts += _legend(x, tallest * _CELL)
    width = x + _LEGEND + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{shown}">'
        f"<title>{shown}</title><style>{_STYLE}</style>"
        f'<rect class="page" width="{width}" height="{height}"/>'
        f'<text x="{_LEFT}" y="18">{shown}</text>{"".join(parts)}</svg>\n'
    )


def _text(text: str) -> str:
    return escape(printable(text, CELL_LIMIT))


def _panel(caption: str, table: Float64Array, x: int) -> list[str]:
    rows, columns = table.shape
    parts = [f'<text x="{x}" y="{_TOP - 8}">{_text(caption)}</text>']
    for i in range(rows):
        for j in range(columns):
            value = float(table[i, j])
            parts.append(
                f'<rect x="{x + j * _CELL}" y="{_TOP + i * _CELL}" width="{_CELL}" '
                f'height="{_CELL}" fill="{colour(value)}">'
                f"<title>i={i + 1}, j={j + 1}: {value:.3f}</title></rect>"
            )
    bottom = _TOP + rows * _CELL
    parts.append(
        f'<rect class="frame" x="{x}" y="{_TOP}" width="{columns * _CELL}" '
        f'height="{rows * _CELL}"/>'
    )
    parts += [
        f'<text x="{x + j * _CELL + 4}" y="{bottom + 15}">{j + 1}</text>' for j in _ticks(columns)
    ]
    parts += [
        f'<text x="{x - 6}" y="{_TOP + i * _CELL + 15}" text-anchor="end">{i + 1}</text>'
        for i in _ticks(rows)
    ]
    parts.append(f'<text x="{x}" y="{bottom + 32}">j</text>')
    parts.append(f'<text x="{x - 40}" y="{_TOP + 15}">i</text>')
    return parts


def _ticks(count: int) -> list[int]:
    """Return the positions that get a number: all of few, some of many."""
    step = max(1, -(-count // 8))
    return list(range(0, count, step))


def _legend(x: int, height: int) -> list[str]:
    stops = "".join(
        f'<stop offset="{at / (len(STOPS) - 1):.2f}" stop-color="rgb{stop}"/>'
        for at, stop in enumerate(reversed(STOPS))
    )
    return [
        f'<defs><linearGradient id="scale" x2="0" y2="1">{stops}</linearGradient></defs>',
        f'<rect x="{x}" y="{_TOP}" width="14" height="{height}" fill="url(#scale)"/>',
        f'<text x="{x + 20}" y="{_TOP + 10}">1</text>',
        f'<text x="{x + 20}" y="{_TOP + height}">0</text>',
    ]
