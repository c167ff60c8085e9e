"""The elements of the figures: SVG inside the page, whose colours come from the page.

A figure is 360 units wide, so that its text is readable on a phone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.report.markup import Markup, join, tag

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EDGE", "WIDTH", "drawing", "place", "stroke", "text"]

WIDTH: Final = 360
EDGE: Final = 14


def drawing(parts: Sequence[Markup], height: int, label: str) -> Markup:
    """Return a figure of some parts; `label` is what is read aloud in its place."""
    box = f"0 0 {WIDTH} {height}"
    return tag("svg", join(parts), viewBox=box, role="img", aria_label=label, class_="chart")


def text(
    x: float, y: float, content: str, *, anchor: str = "start", class_: str = "name"
) -> Markup:
    """Return a line of text."""
    return tag("text", content, x=place(x), y=place(y), text_anchor=anchor, class_=class_)


def stroke(x1: float, x2: float, y: float, class_: str) -> Markup:
    """Return a horizontal line, at least one unit long."""
    return tag("path", d=f"M{place(x1)} {place(y)}H{place(max(x2, x1 + 1))}", class_=class_)


def place(value: float) -> str:
    """Return a coordinate: the same text on every machine."""
    return f"{value:.1f}".removesuffix(".0")
