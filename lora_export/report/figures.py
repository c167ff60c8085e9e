"""Figures of times and ratios, drawn as SVG inside the page, with every number as text.

    ratios     an axis about 1; for each row a point with its interval, and the limit
    samples    for each row every sample, the middle half, the median

See `lora_export.report.drawing` for their width and colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.ondevice.printable import printable
from lora_export.report.drawing import EDGE, WIDTH, drawing, place, stroke, text
from lora_export.report.markup import Markup, tag

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RatioMark", "SampleMark", "ratio_figure", "sample_figure"]

_ROW: Final = 44
_BOTTOM: Final = 34
_NAME: Final = 34
_DOTS: Final = 200
_TICKS: Final = 6


@dataclass(frozen=True)
class RatioMark:
    """A ratio with its interval, and the limit that it was held against."""

    name: str
    ratio: float
    interval: tuple[float, float]
    limit: float | None = None


@dataclass(frozen=True)
class SampleMark:
    """Times of one subject in ms."""

    name: str
    samples_ms: Sequence[float]


def ratio_figure(marks: Sequence[RatioMark], label: str) -> Markup:
    """Return a figure of ratios, 1 in it, one row each."""
    values = [1.0, *(v for m in marks for v in (*m.interval, m.limit) if v is not None)]
    axis = _Axis.over(values)
    height = len(marks) * _ROW + _BOTTOM
    rows = [tag("path", d=f"M{place(axis.at(1.0))} 18V{height - _BOTTOM + 8}", class_="one")]
    for index, mark in enumerate(marks):
        y = index * _ROW
        name = printable(mark.name, _NAME)
        low, high = mark.interval
        said = f"{mark.ratio:.3f} [{low:.3f}, {high:.3f}]"
        middle = y + 30
        rows += [
            text(EDGE, y + 14, name),
            text(WIDTH - EDGE, y + 14, said, anchor="end", class_="value"),
            stroke(axis.at(low), axis.at(high), middle, "interval"),
            tag("circle", cx=place(axis.at(mark.ratio)), cy=middle, r=5, class_="point"),
        ]
        if mark.limit is not None:
            x = place(axis.at(mark.limit))
            rows.append(tag("path", d=f"M{x} {y + 20}V{y + 40}", class_="limit"))
    return drawing([*rows, *axis.ticks(height)], height, label)


def sample_figure(marks: Sequence[SampleMark], label: str) -> Markup:
    """Return a figure of times: dots, the middle half as a bar, the median as a stroke.

    Runs that took far longer than the others of their row are counted, and lie at the edge: on a
    busy machine a few of them would press all the rest into one stroke.
    """
    limits = [_far(sorted(m.samples_ms)) for m in marks]
    axis = _Axis.over([min(v, max(limits)) for m in marks for v in m.samples_ms])
    height = len(marks) * _ROW + _BOTTOM
    rows: list[Markup] = []
    for index, mark in enumerate(marks):
        y = index * _ROW
        ordered = sorted(mark.samples_ms)
        low, middle, high = (_quantile(ordered, share) for share in (0.25, 0.5, 0.75))
        step = max(1, len(ordered) // _DOTS)
        dots = [
            tag("circle", cx=place(axis.at(value)), cy=y + 30, r=2, class_="dot")
            for value in ordered[::step]
        ]
        x = place(axis.at(middle))
        beyond = sum(value > max(limits) for value in ordered)
        said = f"{middle:.3g} ms" + (f", {beyond} off the scale" if beyond else "")
        rows += [
            text(EDGE, y + 14, printable(mark.name, _NAME)),
            text(WIDTH - EDGE, y + 14, said, anchor="end", class_="value"),
            stroke(axis.at(low), axis.at(high), y + 30, "half"),
            *dots,
            tag("path", d=f"M{x} {y + 21}V{y + 39}", class_="median"),
        ]
    return drawing([*rows, *axis.ticks(height, " ms")], height, label)


def _far(ordered: Sequence[float]) -> float:
    """Return the limit above which a sorted number is an outlier: Tukey's outer fence."""
    low, high = (_quantile(ordered, share) for share in (0.25, 0.75))
    return high + 3 * (high - low)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted numbers, between neighbours."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> _Axis:
        """Return an axis that has all finite values inside."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        room = (high - low or abs(high) or 1.0) * 0.06
        return cls(low - room, high + room)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if math.isfinite(value) else 0.0
        return EDGE + min(max(share, 0.0), 1.0) * (WIDTH - 2 * EDGE)

    def ticks(self, height: int, unit: str = "") -> list[Markup]:
        """Return the axis with round numbers on it."""
        y = height - _BOTTOM + 8
        step = _round_step((self.high - self.low) / _TICKS)
        first = math.ceil(self.low / step)
        values = [i * step for i in range(first, math.floor(self.high / step) + 1)]
        digits = max(0, -math.floor(math.log10(step)))
        marks = [stroke(EDGE, WIDTH - EDGE, y, "axis")]
        for value in values:
            x = self.at(value)
            near_edge = x < 3 * EDGE or x > WIDTH - 3 * EDGE
            anchor = ("start" if x < 3 * EDGE else "end") if near_edge else "middle"
            marks.append(tag("path", d=f"M{place(x)} {y}v4", class_="axis"))
            marks.append(text(x, y + 18, f"{value:.{digits}f}{unit}", anchor=anchor, class_="tick"))
        return marks


def _round_step(wanted: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least `wanted`."""
    power: float = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted)
