"""Graphs from the templates in the package: the bytes of a trace, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.graph.spec.signature import Choices
from lora_export.graph.spec.tasks import by_name
from lora_export.graph.templates import shipped
from lora_export.graph.templates.matching import NoTemplateError
from lora_export.graph.templates.shipped import DATA, INDEX, from_template
from tools.templates.compare import same_computation

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.graph.spec.template import GraphTemplate

ROBERTA = {
    "model_type": "roberta", "vocab_size": 301, "hidden_size": 40, "num_attention_heads": 5,
    "num_hidden_layers": 7, "intermediate_size": 71, "max_position_embeddings": 66,
    "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5, "num_labels": 3,
    "problem_type": "single_label_classification",
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": 203, "n_embd": 24, "n_head": 3, "n_layer": 8,
    "n_positions": 40,
}  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 203, "hidden_size": 32, "num_attention_heads": 4,
    "num_hidden_layers": 6, "intermediate_size": 88, "max_position_embeddings": 77,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 203, "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 6, "intermediate_size": 71,
}  # fmt: skip
ROWS: list[dict[str, Any]] = json.loads((DATA / INDEX).read_text())["templates"]


def instance(
    config: dict[str, Any], task: str, dtype: str, opset: int = 20, **given: Any
) -> GraphTemplate:
    arguments: dict[str, Any] = {"sentence": None, "untied": False} | given
    choices = arguments.pop("choices", Choices())
    return from_template(config, by_name(task), dtype, opset, choices, **arguments)


@pytest.mark.parametrize(
    ("config", "task", "dtype"),
    [
        (ROBERTA, "text-classification", "float32"),
        pytest.param(GPT2, "text-generation", "float32", marks=pytest.mark.slow),
        pytest.param(BERT, "fill-mask", "float16", marks=pytest.mark.slow),
    ],
)
def test_an_instance_is_the_trace_byte_by_byte(
    config: dict[str, Any], task: str, dtype: str
) -> None:
    from lora_export.graph.template_build import build_template

    made = instance(config, task, dtype)
    traced = build_template(config, by_name(task), dtype, 20, Choices())
    assert made.onnx_bytes == traced.onnx_bytes
    assert made.describe() == traced.describe()
    assert made.origin is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "opset"),
    [("float32", 23), ("float16", 23), ("bfloat16", 20), ("bfloat16", 21), ("float32", 21)],
)
def test_other_opsets_and_dtypes_are_the_trace_byte_by_byte(dtype: str, opset: int) -> None:
    from lora_export.graph.template_build import build_template

    made = instance(LLAMA, "text-generation", dtype, opset)
    traced = build_template(LLAMA, by_name("text-generation"), dtype, opset, Choices())
    assert made.onnx_bytes == traced.onnx_bytes
    assert made.describe() == traced.describe()


@pytest.mark.parametrize(
    ("config", "task", "depth"),
    [
        (ROBERTA, "text-classification", 3),
        *(
            pytest.param(config, task, depth, marks=pytest.mark.slow)
            for config, task in ((ROBERTA, "text-classification"), (LLAMA, "text-generation"))
            for depth in (2, 4, 5)
        ),
        *(
            pytest.param(config, "text-generation", depth, marks=pytest.mark.nightly)
            for config in (GPT2, LLAMA)
            for depth in (2, 3, 5)
        ),
    ],
)
def test_few_layers_are_the_trace_but_for_names_and_order(
    config: dict[str, Any], task: str, depth: int
) -> None:
    from lora_export.graph.template_build import build_template

    config = {**config, "n_layer" if "n_layer" in config else "num_hidden_layers": depth}
    made = instance(config, task, "float32")
    assert same_computation(made, build_template(config, by_name(task), "float32", 20, Choices()))


def test_an_instance_needs_no_torch() -> None:
    code = (
        "import json, sys\n"
        "from lora_export.graph.graph_export import export_graph\n"
        "from lora_export.graph.spec.tasks import by_name\n"
        "graph = export_graph(json.loads(sys.argv[1]), by_name('text-classification'),\n"
        "    dtype='float32', opset=20, labels_count=3, use_cache=False)\n"
        "print(graph.origin.name, sorted({'torch', 'transformers', 'onnxscript'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(ROBERTA)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "roberta/text-classification.float32.opset20.zip []"


@pytest.mark.parametrize(
    ("changed", "given", "named"),
    [
        ({"num_hidden_layers": 1}, {}, "num_hidden_layers '1'"),
        ({"max_position_embeddings": 4}, {}, "positions 4: the template is for 8"),
        ({"model_type": "an_invented_type"}, {}, "model_type 'an_invented_type'"),
        ({}, {"untied": True}, "untied"),
        ({}, {"choices": Choices(logits="last")}, "logits"),
        ({"an_invented_key": 1}, {}, "an_invented_key"),
    ],
)
def test_what_no_template_is_for_is_named(
    changed: dict[str, Any], given: dict[str, Any], named: str
) -> None:
    with pytest.raises(NoTemplateError, match=named):
        instance({**ROBERTA, **changed}, "text-classification", "float32", **given)


def test_a_table_is_not_longer_than_those_that_were_seen() -> None:
    bert = {**ROBERTA, "model_type": "bert", "type_vocab_size": 2, "max_position_embeddings": 10**5}
    with pytest.raises(NoTemplateError, match="positions 100000: the template is for 8 to 8191"):
        instance(bert, "text-classification", "float32")


def test_other_dtypes_and_opsets_have_no_template() -> None:
    with pytest.raises(NoTemplateError, match="dtype 'float64'"):
        instance(ROBERTA, "text-classification", "float64")
    with pytest.raises(NoTemplateError, match="opset 23"):
        from_template(
            ROBERTA, by_name("text-classification"), "float32", 23, Choices(),
            sentence=None, untied=False,
        )  # fmt: skip


@pytest.mark.parametrize("damage", ["missing", "other bytes", "no list", "a damaged list"])
def test_damaged_data_are_no_template(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = "roberta/text-classification.float32.opset20.zip"
    (tmp_path / "roberta").mkdir()
    (tmp_path / INDEX).write_bytes((DATA / INDEX).read_bytes())
    if damage == "other bytes":
        (tmp_path / file).write_bytes((DATA / file).read_bytes() + b"x")
    if damage == "no list":
        (tmp_path / INDEX).unlink()
    if damage == "a damaged list":
        (tmp_path / INDEX).write_text("{")
    monkeypatch.setattr(shipped, "DATA", tmp_path)
    shipped.read_index.cache_clear()
    try:
        with pytest.raises(NoTemplateError):
            instance(ROBERTA, "text-classification", "float32")
    finally:
        monkeypatch.undo()
        shipped.read_index.cache_clear()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_every_template_is_readable_and_has_its_hash(row: dict[str, Any]) -> None:
    opened = shipped.open_template(row)
    assert {key: opened.table[key] for key in row if key not in {"file", "sha256", "derived"}} == {
        key: value for key, value in row.items() if key not in {"file", "sha256", "derived"}
    }


def test_the_templates_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*.zip")) < 10_000_000


def test_the_page_lists_the_templates() -> None:
    from tools.templates.page import PAGE, rewritten

    page = PAGE.read_text()
    assert page == rewritten(page), "run python -m tools.templates.page"
