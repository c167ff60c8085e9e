"""The figure of quantized layers: a bar for each, in the order of the model.

    panels      one figure each: a gain, a cosine, an error
    bars        from 0; those past the limit in the colour of limits, and counted in words
    axis        the number of the layer, where the names have one

A bar names its layer and its value where a pointer rests on it; the page has a table of all beside.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.report.drawing import EDGE, WIDTH, drawing, place, stroke, text
from lora_export.report.markup import Markup, join, tag
from lora_export.report.page_parts import number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Panel", "in_order", "layer_figure"]

_PANEL: Final = 118
_TOP: Final = 24
_BASE: Final = 92
_LABELS: Final = 10
_NUMBER: Final = re.compile(r"(\d+)")
_LAYER: Final = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Panel:
    """One figure of every layer.

    Attributes:
        title: What it shows.
        values: The figure of each layer; None where it has none.
        guide: A value that is drawn as a line; None for no line.
        least: Layers below this are marked; None for no such limit.
        most: Layers above this are marked; None for no such limit.
        top: The end of the scale; None for the largest value.
    """

    title: str
    values: Mapping[str, float | None]
    guide: float | None = None
    least: float | None = None
    most: float | None = None
    top: float | None = None

    @property
    def has_weak(self) -> bool:
        """Whether a layer is past a limit."""
        return any(value is not None and self.is_weak(value) for value in self.values.values())

    def is_weak(self, value: float) -> bool:
        """Whether a value is past a limit."""
        below = self.least is not None and value < self.least
        return below or (self.most is not None and value > self.most)


def layer_figure(panels: Sequence[Panel], label: str) -> Markup:
    """Return a figure of panels that show the same layers, side by side where there is room."""
    drawn = (drawing(list(_panel(each)), _PANEL, f"{each.title}: {label}") for each in panels)
    return tag("div", *drawn, class_="charts")


def in_order(names: Sequence[str]) -> list[str]:
    """Return names of parameters in the order of the model: layer 2 is before layer 10.

    >>> in_order(["h.10.attn", "h.2.mlp", "h.2.attn"])
    ['h.2.attn', 'h.2.mlp', 'h.10.attn']
    """
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = _NUMBER.split(name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def _panel(panel: Panel) -> Iterator[Markup]:
    finite = [v for v in panel.values.values() if v is not None and math.isfinite(v)]
    top = panel.top or max([*finite, panel.guide or 0.0]) or 1.0
    yield text(EDGE, 14, panel.title)
    yield text(WIDTH - EDGE, 14, _range(panel, finite), anchor="end", class_="value")
    names = in_order(list(panel.values))
    step = (WIDTH - 2 * EDGE) / max(len(names), 1)
    for at, name in enumerate(names):
        value = panel.values[name]
        if value is not None and math.isfinite(value):
            share = min(max(value / top, 0.0), 1.0)
            height = max(share * (_BASE - _TOP), 1.0)
            yield tag(
                "rect",
                tag("title", f"{name}: {number(value)}"),
                x=place(EDGE + at * step),
                y=place(_BASE - height),
                width=f"{max(step * 0.8, 0.5):.2f}",
                height=place(height),
                class_="bar weak" if panel.is_weak(value) else "bar",
            )
    if panel.guide is not None:
        height = min(panel.guide / top, 1.0) * (_BASE - _TOP)
        yield stroke(EDGE, WIDTH - EDGE, _BASE - height, "one")
    yield stroke(EDGE, WIDTH - EDGE, _BASE, "axis")
    yield join(_layer_numbers(names, step))


def _range(panel: Panel, finite: Sequence[float]) -> str:
    """Return the smallest and the largest value in words, and how many are past a limit."""
    if not finite:
        return "not measured"
    low, high = number(min(finite)), number(max(finite))
    said = low if low == high else f"{low} to {high}"
    weak = sum(panel.is_weak(each) for each in finite)
    return f"{said}; {weak} past the limit" if weak else said


def _layer_numbers(names: Sequence[str], step: float) -> Iterator[Markup]:
    """Yield the numbers of some layers, where the first parameter of each is."""
    firsts: dict[int, int] = {}
    for at, name in enumerate(names):
        if (found := _LAYER.search(name)) is not None:
            firsts.setdefault(int(found[1]), at)
    if not firsts:
        return
    every = -(-len(firsts) // _LABELS)
    for layer, at in list(firsts.items())[::every]:
        said = f"layer {layer}" if at == 0 else str(layer)
        yield text(EDGE + at * step, _BASE + 14, said, class_="tick")
