"""The section on merged weights: the rounding loss of each delta, as a heatmap.

The heatmap is a table of numbers on colours: it is read without them, and scrolls on a phone.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from lora_export.report.colours import colour, ink_on
from lora_export.report.markup import Markup, join, tag
from lora_export.report.page_parts import Column, count, number, scrolling, section, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.reports.fidelity_report import FidelityRow, TensorFidelity
    from lora_export.report.facts import Facts

__all__ = ["fidelity"]

_LAYER: Final = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
_LOG_RANGE: Final = (-9.0, 0.0)
"""The ends of the scale, as powers of ten."""
_HEATMAPS: Final = 12
"""Adapters that get one; of the others there are tables."""


def fidelity(facts: Facts) -> Markup | None:
    """Return the section on the rounding loss of each delta, by layer and module."""
    if not facts.fidelity:
        return None
    about = tag(
        "p",
        "‖(W − W0) − ΔW‖ / ‖ΔW‖ of each changed tensor: how much of the adapter’s delta the "
        "rounding of the stored weight took away. 0 is exact, 1 is all of it.",
    )
    parts = [
        _fidelity_of(name, row, heat=index < _HEATMAPS)
        for index, (name, row) in enumerate(facts.fidelity.items())
    ]
    return section("fidelity", "Fidelity of the merged weights", about, _scale(), *parts)


def _scale() -> Markup:
    low, high = (f"10{_superscript(int(edge))}" for edge in _LOG_RANGE)
    return tag(
        "div",
        tag("div", class_="scale", aria_hidden="true"),
        tag(
            "div",
            tag("span", f"{low} or less"),
            tag("span", f"{high} or more"),
            class_="scale-ends",
        ),
    )


def _superscript(value: int) -> str:
    return str(value).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _fidelity_of(name: str, row: FidelityRow, *, heat: bool) -> Markup:
    tensors, lossy = row.tensors, row.lossy
    words = (
        f"Relative error {number(row.relative_error)} over {count(len(tensors), 'tensor')}; "
        f"{row.unmoved_share:.1%} of the entries did not move."
    )
    warning = (
        tag(
            "p",
            tag("strong", "Warning:"),
            f" {count(len(lossy), 'tensor')} lost more than a tenth.",
        )
        if lossy
        else None
    )
    columns = (
        Column("Tensor"), Column("Stored in"), Column("Relative error", "n"),
        Column("Unmoved entries", "n"),
    )  # fmt: skip
    rows = [
        [each, own.dtype, number(own.relative_error), f"{own.unmoved_share:.1%}"]
        for each, own in tensors.items()
    ]
    return join(
        [
            tag("h3", name),
            tag("p", words),
            warning,
            *(_heatmaps(name, tensors) if heat else []),
            tag(
                "details",
                tag("summary", f"Every tensor of {name}"),
                table(f"Fidelity of each tensor of {name}", columns, rows),
            ),
        ]
    )


def _heatmaps(adapter: str, tensors: Mapping[str, TensorFidelity]) -> list[Markup]:
    """Return a table of coloured numbers for each stack of layers."""
    stacks: dict[str, dict[int, dict[str, float]]] = {}
    for name, row in tensors.items():
        found = _LAYER.match(name)
        if found is not None:
            stack, layer, module = found[1], int(found[2]), found[3].removesuffix(".weight")
            stacks.setdefault(stack, {}).setdefault(layer, {})[module] = row.relative_error
    return [_heatmap(adapter, stack, layers) for stack, layers in sorted(stacks.items())]


def _heatmap(adapter: str, stack: str, layers: Mapping[int, Mapping[str, float]]) -> Markup:
    modules = sorted({module for row in layers.values() for module in row})
    caption = f"Relative error in {stack} of {adapter}, by layer and module"
    heads = [tag("th", "Layer", scope="col"), *(tag("th", m, scope="col") for m in modules)]
    body = [
        tag(
            "tr",
            tag("th", str(layer), scope="row"),
            *(_heat_cell(row.get(module)) for module in modules),
        )
        for layer, row in sorted(layers.items())
    ]
    return scrolling(
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", *heads)),
            tag("tbody", *body),
            class_="heat",
        ),
        caption,
    )


def _heat_cell(value: float | None) -> Markup:
    if value is None:
        return tag("td", "–")
    low, high = _LOG_RANGE
    place = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
    style = f"background:{colour(place)};color:{ink_on(place)}"
    return tag("td", f"{value:.0e}" if value else "0", style=style)
