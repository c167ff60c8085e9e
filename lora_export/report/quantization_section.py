"""The section on quantization: exactness, survival and loss of each graph, and its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.reports.quantization_report import LossRow
from lora_export.core.units import size
from lora_export.ondevice.printable import printable
from lora_export.report.layer_figure import Panel, in_order, layer_figure
from lora_export.report.markup import Markup, join, tag
from lora_export.report.page_parts import DASH, Column, badge, count, number, section, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.reports.quantization_report import GateRow, QuantizationRow
    from lora_export.report.facts import Facts

__all__ = ["judged_rows", "quantization", "scheme_of", "sizes_of"]

_TEXT: Final = 160
_FIGURES: Final = 12
"""Graphs that get one; of the others there are tables."""
_TALLEST_GAIN: Final = 1.5
_RED: Final = (
    "In red: past a limit. Limits are for outputs; a layer may be past one in a good model."
)
_ABOUT: Final = (
    "With e the adapter’s effect on the float model’s outputs, and ê its effect on the quantized "
    "model’s: gain is ⟨ê, e⟩ / ‖e‖² (1: as strong as it was), cosine that of ê and e (1: nothing "
    "but the adapter). The errors compare the quantized graph with the float reference. Exact: "
    "the graph computes what its stored integers mean."
)


def quantization(facts: Facts) -> Markup | None:
    """Return the section on quantized graphs; None where there is none."""
    rows = judged_rows(facts)
    if not rows:
        return None
    columns = (
        Column("Graph"), Column("Loss", "name"), Column("Exact", "name"), Column("Why", "long"),
        Column("Gain", "n"), Column("Cosine", "n"), Column("Relative L2 error", "n"),
        Column("KL in nats", "n"), Column("Top-1 agreement", "n"), Column("Weights", "name"),
        Column("Size", "name"),
    )  # fmt: skip
    shown = table(
        "What quantization left of each adapter, and what it cost",
        columns,
        [_row(name, row) for name, row in rows.items()],
    )
    parts = [
        _details(name, row, figure=at < _FIGURES) for at, (name, row) in enumerate(rows.items())
    ]
    scored = _scores(rows)
    return section("quantization", "Quantization", tag("p", _ABOUT), shown, scored, *parts)


def judged_rows(facts: Facts) -> dict[str, QuantizationRow]:
    """Return the rows of all graphs, and of each adapter of those that adapters share."""
    rows: dict[str, QuantizationRow] = {}
    for name, row in facts.quantization.items():
        rows[name] = row
        rows |= {f"{name} with {adapter}": own for adapter, own in row.adapters.items()}
    return rows


def scheme_of(row: QuantizationRow) -> str:
    """Return the stored form of the weights in a few words."""
    scheme = row.scheme
    if scheme is None:
        return DASH
    blocks = f"blocks of {scheme.block_size}" if scheme.block_size else "per channel"
    return f"{printable(scheme.weights, _TEXT)}, {blocks}"


def sizes_of(row: QuantizationRow) -> str:
    """Return the bytes of the weights before and after."""
    if row.float_bytes is None or row.quantized_bytes is None:
        return DASH
    return f"{size(row.float_bytes)} → {size(row.quantized_bytes)}"


def _row(name: str, row: QuantizationRow) -> list[object]:
    loss = row.loss or LossRow()
    return [
        name,
        badge(row.verdict),
        badge(row.exactness.verdict) if row.exactness is not None else DASH,
        printable(row.reason, 3 * _TEXT),
        _with_interval(loss.gain, loss.gain_interval),
        _with_interval(loss.cosine, loss.cosine_interval),
        number(loss.relative_l2),
        number(loss.mean_kl),
        number(loss.top1_agreement),
        scheme_of(row),
        sizes_of(row),
    ]


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return number(value)
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _scores(rows: Mapping[str, QuantizationRow]) -> Markup | None:
    columns = (
        Column("Graph"), Column("Metric", "name"), Column("Examples", "n"), Column("Float", "n"),
        Column("Quantized", "n"), Column("Difference", "n"), Column("Different answers", "n"),
    )  # fmt: skip
    cells = [
        [
            name,
            each.metric,
            number(each.count),
            number(each.reference, 4),
            number(each.graph, 4),
            number(each.difference, 4),
            number(each.disagreements),
        ]
        for name, row in rows.items()
        if (each := row.dataset) is not None
    ]
    if not cells:
        return None
    shown = table("Scores on the data set, of the float and the quantized model", columns, cells)
    return join([tag("h3", "Accuracy after quantization"), shown])


def _details(name: str, row: QuantizationRow, *, figure: bool) -> Markup | None:
    if not (row.layers or row.gates or row.kept):
        return None
    return join(
        [
            tag("h3", name),
            _figure(name, row) if figure and row.layers else None,
            _layers(name, row) if row.layers else None,
            _gates(name, row) if row.gates else None,
            _kept(name, row) if row.kept else None,
        ]
    )


def _figure(name: str, row: QuantizationRow) -> Markup:
    layers = row.layers
    updated = {key: each for key, each in layers.items() if each.gain is not None}
    limits = {each.gate: each.limit for each in row.gates}
    errors = {key: each.relative_error for key, each in layers.items()}
    panels = [Panel("relative error of the weights", errors)]
    if updated:
        gains = {key: each.gain for key, each in updated.items()}
        cosines = {key: each.cosine for key, each in updated.items()}
        least, most = limits.get("min_gain"), limits.get("max_gain")
        panels = [
            Panel("gain of the update", gains, 1.0, least, most, top=_TALLEST_GAIN),
            Panel("cosine of the update", cosines, 1.0, limits.get("min_cosine"), top=1.0),
            *panels,
        ]
    caption = f"{count(len(layers), 'quantized parameter')} of {name}, in the order of the model"
    weak = any(panel.has_weak for panel in panels)
    said = f"{caption}. {_RED}" if weak else f"{caption}."
    return tag("figure", layer_figure(panels, caption), tag("figcaption", said))


def _layers(name: str, row: QuantizationRow) -> Markup:
    columns = (
        Column("Parameter"), Column("Stored as", "name"), Column("Relative error", "n"),
        Column("Error over ‖ΔW‖", "n"), Column("Gain", "n"), Column("Cosine", "n"),
    )  # fmt: skip
    cells = []
    for each in in_order(list(row.layers)):
        own = row.layers[each]
        blocks = f", blocks of {own.block_size}" if own.block_size else ", per channel"
        figures = (own.relative_error, own.error_over_delta, own.gain, own.cosine)
        stored = printable(own.scheme, _TEXT) + blocks
        cells.append([each, stored, *(number(figure) for figure in figures)])
    caption = f"Every quantized parameter of {name}"
    note = tag(
        "p",
        "Gain and cosine are of the update in its own singular subspace. Error over ‖ΔW‖ explains, "
        "and is no verdict: errors are spread over all directions, the update lies in a few.",
        class_="soft",
    )
    return tag("details", tag("summary", caption), table(caption, columns, cells), note)


def _gates(name: str, row: QuantizationRow) -> Markup:
    columns = (
        Column("Gate"), Column("Verdict", "name"), Column("Limit", "n"), Column("Measured", "n"),
        Column("Why", "long"),
    )  # fmt: skip
    caption = f"The limits that {name} was held against"
    return tag(
        "details",
        tag("summary", caption),
        table(caption, columns, [_gate(each) for each in row.gates]),
    )


def _gate(gate: GateRow) -> list[object]:
    return [
        gate.gate,
        badge(gate.verdict),
        number(gate.limit),
        _with_interval(gate.value, gate.interval),
        printable(gate.reason, 2 * _TEXT),
    ]


def _kept(name: str, row: QuantizationRow) -> Markup:
    caption = f"What stays in float in {name}"
    columns = (Column("Parameter"), Column("Why", "long"))
    cells = [[each, printable(row.kept[each], _TEXT)] for each in in_order(list(row.kept))]
    return tag("details", tag("summary", caption), table(caption, columns, cells))
