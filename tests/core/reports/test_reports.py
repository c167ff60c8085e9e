"""Reports as files: written again byte for byte, and described by the published schemas.

The examples in ``tests/data/reports`` were written before the reports were models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from lora_export.core.errors import ExportDirectoryError
from lora_export.core.merge_record import MergeRecord
from lora_export.core.reports.fidelity_report import FidelityReport
from lora_export.core.reports.graph_report import GraphReport
from lora_export.core.reports.latency_report import LatencyReport
from lora_export.core.reports.parity_report import ParityReport, ParityRow, unverified_row
from lora_export.core.reports.quantization_report import QuantizationReport
from lora_export.core.reports.report_model import ReportModel, as_json, parse_report, report_bytes
from lora_export.latency.bench_report import BenchReport
from tools.report_schemas import SCHEMAS, schema_text

ROOT: Final = Path(__file__).parents[3]
EXAMPLES: Final = sorted((ROOT / "tests/data/reports").glob("*.json"))
KINDS: Final[dict[str, type[ReportModel]]] = {
    "fidelity": FidelityReport,
    "graph": GraphReport,
    "latency": LatencyReport,
    "parity": ParityReport,
    "quantization": QuantizationReport,
}


def kind_of(path: Path) -> str:
    return path.name.partition("-")[0]


def unknown_keys(model: Any, where: str = "") -> list[str]:
    """Return the keys, at any depth, that a model has no field for."""
    if isinstance(model, ReportModel):
        found = [f"{where}.{key}" for key in model.model_extra or {}]
        fields = {name: getattr(model, name) for name in type(model).model_fields}
        return found + unknown_keys(fields, where)
    if isinstance(model, dict):
        return [key for n, each in model.items() for key in unknown_keys(each, f"{where}.{n}")]
    if isinstance(model, list):
        return [key for each in model for key in unknown_keys(each, where)]
    return []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_file_of_earlier_is_written_again_byte_for_byte(path: Path) -> None:
    raw = path.read_bytes()
    if kind_of(path) == "bench":
        text = json.dumps(BenchReport.model_validate_json(raw).model_dump(), indent=1)
        assert json.loads(text) == json.loads(raw)
    elif kind_of(path) == "merge":
        assert MergeRecord.model_validate_json(raw).model_dump() == json.loads(raw)
    else:
        report = parse_report(KINDS[kind_of(path)], raw, path.name)
        assert report_bytes(report) == raw
        assert unknown_keys(report) == []


def test_every_kind_has_an_example() -> None:
    assert {kind_of(path) for path in EXAMPLES} == set(SCHEMAS) - {"engine", "layout"}


def test_a_report_of_a_newer_version_keeps_its_keys() -> None:
    raw = b'{\n "graphs": {\n  "a": {\n   "verdict": "pass",\n   "loss": 0.5\n  }\n }\n}\n'
    report = parse_report(ParityReport, raw, "reports/parity.json")
    assert report.graphs["a"].verdict == "pass"
    assert report_bytes(report) == raw


def test_what_is_not_set_is_not_written() -> None:
    row = unverified_row("the model is too large")
    assert as_json(row) == {
        "verdict": "unverified", "reason": "the model is too large", "metrics": None,
    }  # fmt: skip
    compared = ParityRow(verdict="pass", reason="", effect=float("nan"), notes=["n"])
    assert list(as_json(compared)) == ["verdict", "reason", "effect", "notes"]
    text = report_bytes(ParityReport(graphs={"a": compared}))
    assert b'"effect": NaN' in text
    assert report_bytes(parse_report(ParityReport, text, "x")) == text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "Expecting property name"),
        (b"[]", "at the document"),
        (b'{"graphs": {"a": {}}}', r"Field required, at graphs\.a\.verdict"),
        (b'{"graphs": {"a": {"verdict": "good"}}}', r"Input should be .*, at graphs\.a\.verdict"),
    ],
)
def test_a_damaged_report_names_the_file_and_the_place(raw: bytes, message: str) -> None:
    with pytest.raises(ExportDirectoryError, match=message) as error:
        parse_report(ParityReport, raw, "reports/parity.json")
    assert "'reports/parity.json' is damaged" in str(error.value)


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_the_published_schema_is_that_of_the_model(name: str) -> None:
    """The schemas are up to date; else run: python -m tools.report_schemas."""
    published = (ROOT / "docs/schemas" / f"{name}.schema.json").read_text("utf-8")
    assert schema_text(name) == published
