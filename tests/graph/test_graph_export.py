"""Graphs of other dtypes, other opsets, other heads, and models that are refused."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from typing import TYPE_CHECKING

import onnx
import pytest

from lora_export.core.errors import UnsupportedError
from lora_export.graph.graph_export import export_graph
from lora_export.graph.spec import tasks
from lora_export.graph.spec.model_settings import plain_settings
from lora_export.graph.trace import trace
from tests.graph.families import initializers_of, load_config, template_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

NUMBERS = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}


@pytest.mark.parametrize(
    ("kind", "task", "dtype", "opset"),
    [
        ("deberta-v2", "text-classification", "float16", 18),
        ("gpt2", "text-generation", "bfloat16", 20),
    ],
    ids=str,
)
def test_graph_of_another_dtype_and_opset(tiny: TinyModels, kind, task, dtype, opset) -> None:
    number = NUMBERS[dtype]
    row = tasks.by_name(task)
    labels = 3 if row.label_parameters else None
    config = load_config(tiny.base(kind, task))
    template = export_graph(config, row, dtype=dtype, opset=opset, labels_count=labels)
    graph = onnx.load_model_from_string(template.onnx_bytes)
    initializers = initializers_of(graph)
    assert {parameter.dtype for parameter in template.parameters} == {dtype}
    for parameter in template.parameters:
        assert initializers[parameter.name].data_type == number, parameter.name
    output, *_ = graph.graph.output
    assert output.type.tensor_type.elem_type == number
    for value in (*graph.graph.input, *graph.graph.output):
        cached = value.name.startswith(("past_key_values.", "present."))
        wanted = number if cached or value is output else onnx.TensorProto.INT64
        assert value.type.tensor_type.elem_type == wanted, value.name
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": opset}
    assert template.opset == opset
    casts = [n for n in graph.graph.node if n.op_type == "Cast" and n.input[0] in initializers]
    assert casts == []


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "no-such-model", "hidden_size": 4},
        {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        {"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4, "num_hidden_layers": 1},
        {"model_type": "bert", "hidden_size": "wide"},
    ],
    ids=["unknown", "not a text model", "impossible", "not a number"],
)
def test_model_that_cannot_be_built_is_unsupported(config) -> None:
    with pytest.raises(UnsupportedError) as caught:
        template_of(config, "text-classification", use_cache=False)
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no-such-model"):
        template_of({"model_type": "no-such-model"}, "fill-mask", use_cache=False)


@pytest.mark.parametrize("model_type", ["no-such-model", "bert"])
def test_remote_code_is_not_run(tmp_path: Path, monkeypatch, model_type) -> None:
    """A config that names code of its own: neither for known nor for unknown models."""
    witness = tmp_path / "ran"
    (tmp_path / "modeling.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    config = {
        "model_type": model_type,
        "hidden_size": 30,  # impossible for bert's 4 heads, so that no time is spent on tracing
        "num_attention_heads": 4,
        "auto_map": {"AutoConfig": "modeling.C", "AutoModelForMaskedLM": "modeling.M"},
    }
    with pytest.raises(UnsupportedError):
        template_of(config, "fill-mask", use_cache=False)
    assert not witness.exists()


TINY = {"vocab_size": 40, "hidden_size": 16, "bos_token_id": 1, "eos_token_id": 2}


def test_model_that_computes_in_bfloat16_whatever_its_dtype_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(  # Falcon as transformers has it
        "lora_export.graph.trace.trace.float32_alibi", contextlib.nullcontext
    )
    config = {"model_type": "falcon", **TINY, "num_hidden_layers": 1, "num_attention_heads": 2,
              "alibi": True, "multi_query": False}  # fmt: skip
    with pytest.raises(UnsupportedError, match="FalconForCausalLM computes in bfloat16 at"):
        template_of(config, "text-generation", use_cache=False)


def test_keys_that_a_conversion_to_their_own_dtype_returns_are_outputs() -> None:
    """GPT-Neo converts its keys to float32, which is nothing here, before it keeps them."""
    config = {"model_type": "gpt_neo", **TINY, "num_layers": 2, "num_heads": 2, "window_size": 3,
              "attention_types": [[["global", "local"], 1]]}  # fmt: skip
    graph = onnx.load_model_from_string(
        template_of(config, "text-generation", use_cache=False).onnx_bytes
    )
    names = [value.name for value in graph.graph.output]
    assert names[:3] == ["logits", "present.0.key", "present.0.value"]


def test_what_torch_prints_where_tracing_fails_is_not_the_users(capfd) -> None:
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    with trace._quiet():
        print("def forward(self): ...", file=sys.stderr)  # noqa: T201
        print("def forward(self): ...")  # noqa: T201
        log.warning("no user code corresponds to {u1}")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_positions_that_transformers_no_longer_has_are_refused(kind) -> None:
    config = {
        "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "vocab_size": 9, "position_embedding_type": kind,
    }  # fmt: skip
    task = tasks.by_name("feature-extraction")
    with pytest.raises(UnsupportedError, match=f"does not know position_embedding_type '{kind}'"):
        export_graph(config, task, dtype="float32", opset=20, labels_count=None, use_cache=False)


def test_numbers_that_json_cannot_write_are_read() -> None:
    damaged = {"__float__": "many"}
    config = {
        "limits": [0.0, {"__float__": "Infinity"}, damaged],
        "rope": {"low": {"__float__": "NaN"}},
    }
    settings = plain_settings({**config, "auto_map": {"AutoModel": "mine.Model"}})
    assert settings["limits"] == [0.0, float("inf"), damaged]
    assert math.isnan(settings["rope"]["low"])
    assert "auto_map" not in settings


@pytest.mark.parametrize("said", [{}, {"attention_type": "block_sparse"}])  # the default
def test_attention_that_depends_on_the_length_of_the_text_is_refused(said) -> None:
    config = {
        "model_type": "big_bird", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9,
        "num_attention_heads": 2, "intermediate_size": 8, **said,
    }  # fmt: skip
    task = tasks.by_name("feature-extraction")
    with pytest.raises(UnsupportedError, match="to blocks of a long one"):
        export_graph(config, task, dtype="float32", opset=20, labels_count=None, use_cache=False)
