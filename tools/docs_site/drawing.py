"""A drawing of the ``mermaid`` graph of docs/architecture.md, which loads no script."""

from __future__ import annotations

import html
import re
from typing import Final

__all__ = ["graph_svg"]

_EDGE: Final = re.compile(r"^\s*(\w+) --> ([\w &]+?)\s*$", re.MULTILINE)
_WIDTH, _HEIGHT, _COLUMN, _ROW = 128, 34, 152, 66


def graph_svg(text: str) -> str:
    """Return the lines ``a --> b & c`` of a graph as an SVG, each node below those that name it."""
    edges = [(start, end.strip()) for start, ends in _EDGE.findall(text) for end in ends.split("&")]
    places = _places(edges)
    columns = 1 + max(column for column, _ in places.values())
    rows = 1 + max(row for _, row in places.values())
    width, height = columns * _COLUMN, rows * _ROW
    lines = [_arrow(places[start], places[end]) for start, end in edges]
    boxes = [_box(name, place) for name, place in places.items()]
    return (
        f'<svg class="graph" viewBox="0 0 {width:g} {height}" role="img" '
        f'aria-label="The packages and their imports" xmlns="http://www.w3.org/2000/svg">'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="currentColor"/></marker>'
        f"</defs>{''.join(lines)}{''.join(boxes)}</svg>"
    )


def _places(edges: list[tuple[str, str]]) -> dict[str, tuple[float, int]]:
    """Return the column and the row of each node: a row below the lowest node that names it."""
    rows: dict[str, int] = {name: 0 for edge in edges for name in edge}
    for _ in rows:  # as many times as a path can be long
        for start, end in edges:
            rows[end] = max(rows[end], rows[start] + 1)
    widest = max(list(rows.values()).count(row) for row in rows.values())
    places = {}
    for row in range(1 + max(rows.values())):
        names = [name for name, at in rows.items() if at == row]
        for column, name in enumerate(names):
            places[name] = (column + (widest - len(names)) / 2, row)
    return places


def _box(name: str, place: tuple[float, int]) -> str:
    x, y = place[0] * _COLUMN + (_COLUMN - _WIDTH) / 2, place[1] * _ROW + 8
    return (
        f'<rect x="{x:g}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<text x="{x + _WIDTH / 2:g}" y="{y + _HEIGHT / 2 + 5:g}">{html.escape(name)}</text>'
    )


def _arrow(start: tuple[float, int], end: tuple[float, int]) -> str:
    x1, y1 = (start[0] + 0.5) * _COLUMN, start[1] * _ROW + 8 + _HEIGHT
    x2, y2 = (end[0] + 0.5) * _COLUMN, end[1] * _ROW + 6
    return f'<path d="M{x1:g} {y1} C{x1:g} {y1 + 16} {x2:g} {y2 - 18} {x2:g} {y2}"/>'
