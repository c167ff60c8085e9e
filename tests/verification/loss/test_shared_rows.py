"""The rows of graphs that adapters share, as adapters come, go and are measured again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.core.manifest import Manifest, RowRecord, read_manifest
from lora_export.core.modes import Mode
from lora_export.core.reports.parity_report import ParityRow
from lora_export.core.reports.quantization_report import QuantizationRow
from lora_export.verification.loss.shared_rows import quantization_rows, rows_without
from lora_export.verification.parity import GraphParity
from tests.helpers.showcase import save_showcase

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO = "support-intents", "billing_intents"
GOOD = QuantizationRow(verdict="pass", reason="the adapter survives")
BAD = QuantizationRow(verdict="fail", reason="it does not survive")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Return the manifest of a batched export of two adapters."""
    export_dir: Path = save_showcase(tmp_path_factory.mktemp("shared") / "out")
    held = read_manifest(export_dir)
    shared = held.base_graph.model_copy(update={"mode": Mode.BATCHED, "onnx": "batched.onnx"})
    adapters = {
        name: held.adapters[name].model_copy(update={"row": RowRecord(row=at)})
        for at, name in enumerate((ONE, TWO), start=1)
    }
    graphs = {"base": held.base_graph, "batched": shared}
    return held.model_copy(update={"graphs": graphs, "adapters": adapters})


def shared(**rows: QuantizationRow) -> QuantizationRow:
    adapters = {{"one": ONE, "two": TWO}[name]: row for name, row in rows.items()}
    verdict = "fail" if BAD in rows.values() else "pass"
    return QuantizationRow(verdict=verdict, adapters=adapters)


def compared(row: QuantizationRow | None) -> GraphParity:
    return GraphParity(ParityRow(verdict="pass"), quantization=row)


def test_a_shared_graph_is_as_good_as_its_worst_adapter(manifest: Manifest) -> None:
    parity = GraphParity(
        ParityRow(verdict="pass"), adapters={ONE: compared(GOOD), TWO: compared(BAD)}
    )
    row = quantization_rows(manifest, {}, {"batched": parity})["batched"]
    assert (row.verdict, row.reason) == ("fail", f"{TWO} is fail")
    assert list(row.adapters) == [ONE, TWO]


def test_what_was_not_measured_now_stays(manifest: Manifest) -> None:
    earlier = {"batched": shared(one=GOOD, two=BAD)}
    parity = GraphParity(ParityRow(verdict="pass"), adapters={ONE: compared(GOOD)})
    row = quantization_rows(manifest, earlier, {"batched": parity})["batched"]
    assert row.verdict == "fail"
    assert set(row.adapters) == {ONE, TWO}


def test_a_graph_that_was_not_measured_has_no_row(manifest: Manifest) -> None:
    assert quantization_rows(manifest, {}, {"base": compared(None)}) == {}
    assert quantization_rows(manifest, {}, {"base": compared(GOOD)}) == {"base": GOOD}


def test_the_rest_judges_a_shared_graph_when_an_adapter_is_gone(manifest: Manifest) -> None:
    rows = {"batched": shared(one=GOOD, two=BAD), "base": GOOD, "removed": BAD}
    found = rows_without(manifest, rows, {TWO})
    assert list(found) == ["batched", "base"]
    assert (found["batched"].verdict, list(found["batched"].adapters)) == ("pass", [ONE])
    assert found["base"] == GOOD
    assert rows_without(manifest, rows, {ONE, TWO})["batched"].verdict == "ungated"
    assert rows_without(manifest, rows, ())["batched"] == rows["batched"]
