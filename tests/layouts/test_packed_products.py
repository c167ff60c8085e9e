"""One product for q, k and v in the directory for genai: the same answers, from copied values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from lora_export.commands.layout import layout
from lora_export.runtime import open_export
from tests.helpers.builds import build
from tests.helpers.chat_models import save_chat_adapter, save_chat_base
from tests.layouts.conftest import TASK

if TYPE_CHECKING:
    from pathlib import Path

WIDE = {"hidden_size": 64, "num_hidden_layers": 2}
INT4 = {"weights": "int4", "block_size": 16, "embeddings": "keep"}
INT8 = {"weights": "int8", "block_size": "all"}
IDS = np.random.default_rng(4).integers(3, 200, (1, 6))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, tuple[Path, Path, Path]]:
    """A base and two adapters of families with and without biases of q, k and v."""
    root = tmp_path_factory.mktemp("wide")
    found = {}
    for family in ("Llama", "Qwen2"):
        base = save_chat_base(family, root / family, **WIDE)
        adapters = [save_chat_adapter(base, root / f"{family}-{n}", seed=n, r=4) for n in (1, 2)]
        found[family] = (base, *adapters)
    return found


def feeds_of(signature: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {
        "input_ids": IDS,
        "attention_mask": np.ones_like(IDS),
        **{name: np.zeros((1, axes[1], 0, axes[3]), np.float32)
           for name, axes in signature.items() if name.startswith("past_key_values")},
    }  # fmt: skip


def run(folder: Path, values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the logits of a directory, and the feeds that they are of."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    feeds = feeds_of({each.name: tuple(each.shape) for each in session.get_inputs()})
    return session.run(["logits"], {**feeds, **values})[0], feeds


def kinds_of(folder: Path) -> list[str]:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attentions) == 2
    assert all(list(node.input[1:3]) == ["", ""] for node in attentions)
    return [node.op_type for node in graph.node]


@pytest.mark.parametrize(
    ("family", "quantize"),
    [("Llama", None), ("Qwen2", None), ("Llama", INT4), ("Qwen2", INT8)],
    ids=["float", "with biases", "int4", "int8 with a scale per output"],
)
def test_merged_graphs_read_one_product(family, quantize, made, tmp_path):
    base, first, _ = made[family]
    settings = {"quantize": quantize} if quantize else {}
    export = build(base, {"a": first}, tmp_path / "out", task=TASK, graph_form="ort",
                   **settings).output  # fmt: skip
    layout(export, "genai", tmp_path / "g", adapter="a")
    counts = kinds_of(tmp_path / "g")
    assert counts.count("MatMul") == 2 * 5 + 1
    found, feeds = run(tmp_path / "g", {})
    with open_export(export) as session:
        np.testing.assert_array_equal(found, session.run(feeds, adapter="a")["logits"])


@pytest.mark.parametrize(("family", "quantize"), [("Llama", None), ("Qwen2", INT4)])
def test_swappable_graphs_add_all_terms_to_one_product(family, quantize, made, tmp_path):
    base, *adapters = made[family]
    settings = {"quantize": quantize} if quantize else {}
    export = build(base, dict(zip("ab", adapters, strict=True)), tmp_path / "out", task=TASK,
                   mode="swappable", graph_form="ort", **settings).output  # fmt: skip
    layout(export, "genai", tmp_path / "g")
    assert kinds_of(tmp_path / "g").count("Concat") == 2
    for name in ("a", "b", None):
        values = {}
        if name is not None:
            pack = onnxruntime.AdapterFormat.read_adapter(
                str(tmp_path / f"g/adapters/{name}.onnx_adapter")
            )
            values = {key: value.numpy() for key, value in pack.get_parameters().items()}
        found, feeds = run(tmp_path / "g", values)
        with open_export(export) as session:
            np.testing.assert_array_equal(found, session.run(feeds, adapter=name)["logits"])


def test_an_adapter_of_some_of_the_three_is_packed_with_the_base(made, tmp_path):
    """Its v is in a file of its own; q and k are those of the base."""
    base, _, _ = made["Llama"]
    adapter = save_chat_adapter(base, tmp_path / "v", seed=3, r=4, target_modules=["v_proj"])
    export = build(base, {"v": adapter}, tmp_path / "out", task=TASK, graph_form="ort").output
    layout(export, "genai", tmp_path / "g", adapter="v")
    kinds_of(tmp_path / "g")
    found, feeds = run(tmp_path / "g", {})
    with open_export(export) as session:
        np.testing.assert_array_equal(found, session.run(feeds, adapter="v")["logits"])
        assert not np.array_equal(found, session.run(feeds)["logits"])


def test_normalized_queries_keep_their_products(tmp_path):
    """The norm of each head stands between product and attention."""
    base = save_chat_base("Qwen3", tmp_path / "base", **WIDE, head_dim=16)
    adapter = save_chat_adapter(base, tmp_path / "a", seed=1, r=4)
    export = build(base, {"a": adapter}, tmp_path / "out", task=TASK, graph_form="ort").output
    layout(export, "genai", tmp_path / "g", adapter="a")
    graph = onnx.load(tmp_path / "g/model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMul") == 2 * 7 + 1
    found, feeds = run(tmp_path / "g", {})
    with open_export(export) as session:
        np.testing.assert_array_equal(found, session.run(feeds, adapter="a")["logits"])
