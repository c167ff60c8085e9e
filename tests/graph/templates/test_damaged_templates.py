"""The package's own templates, damaged by a disk: no template, and no other error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.graph.templates import shipped, witness
from lora_export.graph.templates.matching import NoTemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROW: dict[str, Any] = shipped.read_index()["templates"][0]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder of the templates' data, which is empty."""
    shipped.read_index.cache_clear()
    monkeypatch.setattr(shipped, "DATA", tmp_path)
    yield tmp_path
    shipped.read_index.cache_clear()


@pytest.mark.parametrize(
    "index",
    [
        "", "[]", "{}", "5", '{"templates": []}', "[" * 5000, '{"frequencies": 1}',
        *(json.dumps({"frequencies": "", "templates": each}) for each in (
            {}, [5], [{}], [{**ROW, "file": 5}], [{**ROW, "file": "../x.zip"}],
            [{**ROW, "sha256": None}], [{**ROW, "choices": []}], [{**ROW, "dtype": []}],
            [{**ROW, "opset": "x"}], [{**ROW, "derived": 5}], [{**ROW, "derived": [5]}],
            [{**ROW, "derived": [["float32"]]}],
        )),
    ],
)  # fmt: skip
def test_a_damaged_list_is_no_list(index: str, data: Path) -> None:
    (data / shipped.INDEX).write_text(index)
    with pytest.raises(NoTemplateError, match="the list of templates"):
        shipped.read_index()


@pytest.mark.parametrize("table", ["[]", "5", "[" * 5000, ""])
def test_damaged_witnesses_are_none(table: str, data: Path) -> None:
    (data / witness.WITNESSES).write_text(table)
    with pytest.raises(NoTemplateError, match="the witnesses of the templates"):
        witness.read_witnesses()


@pytest.mark.parametrize(
    "table",
    [{}, [], 5, {"config": 5}, {"config": {}}, {"config": {"model_type": []}},
     {"config": {"model_type": "bert"}, "output": "x", "shape": [1]},
     {"config": {"model_type": "bert"}, "output": [1.0], "shape": [2]}],
)  # fmt: skip
def test_a_damaged_witness_is_named(table: Any) -> None:
    with pytest.raises(NoTemplateError, match="its witness is damaged"):
        witness.open_witness(ROW, table)


def test_a_witness_of_any_size_is_not_made() -> None:
    whole = witness.read_witnesses()[ROW["file"]]
    table = {**whole, "config": {**whole["config"], "vocab_size": 1 << 23}}
    with pytest.raises(NoTemplateError, match=r"its witness is damaged: it has \d+ values"):
        witness.open_witness(ROW, table)
