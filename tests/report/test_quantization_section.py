"""The section on quantization: its table, its figures, its words."""

from __future__ import annotations

import re

import pytest

from lora_export.core.changes import replace_files
from lora_export.core.manifest import edit_manifest, write_manifest
from lora_export.core.reports.quantization_report import (
    LayerLossRow,
    LossRow,
    QuantizationReport,
    QuantizationRow,
)
from lora_export.core.reports.report_model import report_bytes
from lora_export.report.facts import read_facts
from lora_export.report.github import annotate
from lora_export.report.layer_figure import Panel, in_order, layer_figure
from lora_export.report.markdown import markdown
from lora_export.report.quantization_section import quantization
from tests.helpers.showcase import save_showcase


@pytest.fixture
def showcase(tmp_path):
    return save_showcase(tmp_path / "out")


def with_rows(export_dir, rows):
    """Replace the report on quantization; return the facts."""
    content = report_bytes(QuantizationReport(graphs=rows))
    with edit_manifest(export_dir) as manifest:
        graphs = {
            name: each.model_copy(update={"loss": rows[name].verdict if name in rows else None})
            for name, each in manifest.graphs.items()
        }
        updated = manifest.model_copy(update={"graphs": graphs})
        replace_files(export_dir, manifest, updated, {"reports/quantization.json": content})
    return read_facts(export_dir)


def layer(**figures) -> LayerLossRow:
    return LayerLossRow(scheme="int4", block_size=32, **figures)


def bars(drawing: str) -> list[tuple[float, str]]:
    """Return the height and the class of each bar."""
    found = re.findall(r'height="([\d.]+)" class="(bar[ a-z]*)"', drawing)
    return [(float(height), kind) for height, kind in found]


def test_the_table_has_a_row_for_each_graph_and_its_words(showcase):
    shown = str(quantization(read_facts(showcase)))
    for fact in (
        "int4, blocks of 32", "900.0 kB → 271.0 kB", "1.000 [0.900, 1.100]", "· ungated", "✗ fail",
        "Every quantized parameter of base", "What stays in float in support-intents",
        "gain of the update", "relative error of the weights", "In red: past a limit",
    ):  # fmt: skip
        assert fact in shown, fact
    assert "<script" not in shown


def test_without_the_report_there_is_no_section(showcase):
    (showcase / "reports/quantization.json").unlink()
    facts = read_facts(showcase)
    assert quantization(facts) is None
    assert "Quantization" not in markdown(facts)


def test_an_adapter_of_a_shared_graph_has_its_own_row_and_layers_without_gain(showcase):
    own = QuantizationRow(verdict="pass", reason="the adapter survives", loss=LossRow(gain=0.97))
    row = QuantizationRow(
        verdict="pass", layers={"layer.0.q": layer(relative_error=0.1)},
        adapters={"support-intents": own, "removed": own},
    )  # fmt: skip
    facts = with_rows(showcase, {"base": row, "gone": row})
    shown = str(quantization(facts))
    assert "base with support-intents" in shown
    assert "removed" not in shown
    assert "gone" not in shown
    assert "gain of the update" not in shown
    assert "base with support-intents | ✅ pass" in markdown(facts)


def test_a_failed_loss_is_the_report_s_verdict_and_an_annotation(showcase):
    reason = "the adapter 'a' does not survive quantization"
    facts = with_rows(showcase, {"base": QuantizationRow(verdict="fail", reason=reason)})
    assert facts.verdict == "fail"
    lines = [str(each) for each in annotate(facts)]
    assert f"::error title=Quantization of base::{reason}" in lines


def test_figures_of_a_graph_that_has_changed_are_left_out(showcase):
    with edit_manifest(showcase) as manifest:
        graphs = {
            name: each.model_copy(update={"loss": None}) for name, each in manifest.graphs.items()
        }
        write_manifest(showcase, manifest.model_copy(update={"graphs": graphs}))
    assert quantization(read_facts(showcase)) is None


def test_what_is_ungated_is_no_annotation(showcase):
    facts = with_rows(showcase, {"base": QuantizationRow(verdict="ungated")})
    assert not [each for each in annotate(facts) if "Quantization" in str(each)]


def test_bars_are_as_high_as_their_values_and_the_weak_ones_are_marked():
    values = {"h.0.q": 1.0, "h.1.q": 0.5, "h.2.q": None, "h.10.q": -0.2, "h.3.q": 9.0}
    drawing = layer_figure([Panel("gain", values, 1.0, 0.8, 1.25, top=2.0)], "gains")
    assert bars(str(drawing)) == [
        (34.0, "bar"), (17.0, "bar weak"), (68.0, "bar weak"), (1.0, "bar weak"),
    ]  # fmt: skip
    assert "-0.200 to 9.000; 3 past the limit" in drawing
    assert "<title>h.1.q: 0.500</title>" in drawing
    assert ">layer 0<" in drawing


@pytest.mark.parametrize("values", [{}, {"a": None}, {"a": float("nan")}, {"a": 0.0}])
def test_figures_of_nothing_are_drawn(values):
    drawing = layer_figure([Panel("error", values)], "errors")
    assert drawing.startswith('<div class="charts"><svg')
    assert "nan" not in drawing.lower()


def test_hundreds_of_layers_fit():
    values = {f"model.layers.{at}.{kind}": 0.1 for at in range(80) for kind in "abcdefg"}
    drawing = str(layer_figure([Panel("error", values)], "errors"))
    places = [float(each) for each in re.findall(r'<rect x="([\d.]+)"', drawing)]
    assert len(places) == 560
    assert max(places) < 346
    assert drawing.count('class="tick"') <= 10


def test_layers_come_in_the_order_of_the_model():
    assert in_order(["h.10.b", "h.9.b", "embed", "h.9.a"]) == ["embed", "h.9.a", "h.9.b", "h.10.b"]
