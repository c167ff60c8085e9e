"""Witnesses of the templates: torch's outputs, given again by ONNX Runtime."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_export.graph.templates import shipped
from lora_export.graph.templates.shipped import read_index
from lora_export.graph.templates.witness import read_witnesses
from lora_export.runtime import template_check
from lora_export.runtime.template_check import check_templates, witness_error

ROWS: list[dict[str, Any]] = read_index()["templates"]


def test_every_template_has_a_witness() -> None:
    assert read_witnesses().keys() == {row["file"] for row in ROWS}


def test_one_template_of_each_architecture_gives_what_torch_gave() -> None:
    found = check_templates(every=False)
    assert (found.templates, found.failed) == (len(ROWS), ())
    assert found.checked == len({row["model_type"] for row in ROWS})


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_every_template_gives_what_torch_gave(row: dict[str, Any]) -> None:
    error = witness_error(row, read_witnesses()[row["file"]])
    assert error <= template_check.TOLERANCES[row["dtype"]]


def test_another_output_and_a_damaged_file_are_named(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = json.loads(json.dumps(read_witnesses()))
    row = ROWS[0]
    other[row["file"]]["output"][0] += 1
    assert witness_error(row, other[row["file"]]) > 0.01
    monkeypatch.setattr(template_check, "read_witnesses", lambda: other)
    (failed,) = check_templates(every=False).failed
    assert failed.startswith(f"{row['file']}: relative error")
    monkeypatch.setattr(shipped, "DATA", tmp_path)
    assert "cannot be read" in check_templates(every=False).failed[0]
