"""Norms, rotations and attentions as one node each: counted, and compared with torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lora_export.graph.optimize.fold import fold
from lora_export.graph.optimize.opset_nodes import fuse
from lora_export.graph.spec import tasks
from lora_export.graph.trace.trace import trace
from lora_export.ondevice.judge.decoding import run_in_pieces
from lora_export.verification.inputs.random_inputs import make_cases
from tests.graph.optimize.sketch import Sketch, check, floats, integers
from tests.graph.traced import Graph, twin
from tests.helpers.slow import but_the_first

SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4,
    "num_hidden_layers": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
GEMMA = {
    **GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 5,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
DECODERS: dict[str, tuple[Any, dict[str, int]]] = {
    "gpt2": (
        transformers.GPT2Config(
            vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0
        ),
        {"Attention": 2, "Gelu": 2},
    ),
    "llama": (
        transformers.LlamaConfig(**GROUPED),
        {"Attention": 2, "RMSNormalization": 5, "RotaryEmbedding": 4},
    ),
    "qwen3": (
        transformers.Qwen3Config(**GROUPED),
        {"Attention": 2, "RMSNormalization": 9, "RotaryEmbedding": 4},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig(**GEMMA),
        {"Attention": 2, "RMSNormalization": 13, "RotaryEmbedding": 4, "Gelu": 2},
    ),
    "gpt-neox, rotated in part": (
        transformers.GPTNeoXConfig(**SMALL),
        {"Attention": 2, "RotaryEmbedding": 4, "Gelu": 2},
    ),
}
OPERATORS = ("Attention", "RMSNormalization", "RotaryEmbedding", "Gelu")
PARTS = ("Softmax", "Tanh", "Reciprocal", "Sqrt", "Neg", "Expand")


def counted(graph: Graph) -> dict[str, int]:
    return {name: n for name in OPERATORS if (n := graph.types.count(name))}


def assert_equal_to_torch(graph: Graph, model: Any, config: Any, shapes: Any) -> None:
    causal = graph.task.causal
    for case in make_cases(
        config.to_dict(), graph.signature, seed=0, left_padding=causal, shapes=shapes
    ):
        text = {name: torch.tensor(v) for name, v in case.feeds.items() if "past" not in name}
        with torch.inference_mode():
            expected = model(**text)[graph.task.output].numpy()[case.mask]
        actual = run_in_pieces(graph, case.feeds, graph.task.output)[case.mask]
        assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 2e-6


@pytest.mark.parametrize("kind", but_the_first(DECODERS))
def test_a_decoder_at_opset_24_has_one_node_for_each(kind: str) -> None:
    config, nodes = DECODERS[kind]
    model = twin(config)
    graph = Graph(config, model, opset=24)
    assert counted(graph) == nodes
    assert not [name for name in graph.types if name in PARTS]
    assert_equal_to_torch(graph, model, config, ((1, 12), (3, 9), (2, 1)))


@pytest.mark.parametrize("opset", [23, 24])
def test_scores_are_capped_outside_of_the_attention(opset: int) -> None:
    """TensorRT's parser refuses ``softcap``: a capped attention stays written out."""
    config = transformers.Gemma2Config(
        **GEMMA, attn_logit_softcapping=0.5, final_logit_softcapping=None
    )
    model = twin(config)
    graph = Graph(config, model, opset=opset)
    assert counted(graph) == {"RMSNormalization": 9, "RotaryEmbedding": 4, "Gelu": 2}
    assert (graph.types.count("Softmax"), graph.types.count("Tanh")) == (2, 2)
    assert_equal_to_torch(graph, model, config, ((3, 9),))


@pytest.mark.parametrize("kind", but_the_first(DECODERS))
def test_a_node_in_float16_has_attributes_that_tensorrt_s_parser_takes(kind: str) -> None:
    """Compared with the parser of TensorRT for RTX 1.7, which builds such graphs."""
    traced = trace(
        DECODERS[kind][0].to_dict(), tasks.by_name("text-generation"), "float16", 24
    )  # fmt: skip
    fold(traced.model, traced.parameters, traced.signature)
    attributes = {
        node.op_type: set(node.attributes)
        for node in traced.model.graph
        if node.op_type in OPERATORS
    }
    assert attributes["Attention"] <= {"scale"}
    assert attributes.get("RMSNormalization", set()) <= {"axis", "epsilon", "stash_type"}


@pytest.mark.parametrize("opset", [23, 24])
def test_an_encoder_s_mask_and_table_are_expanded_once(opset: int) -> None:
    config = transformers.ModernBertConfig(
        **SMALL, local_attention=4, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2
    )
    model = twin(config, "AutoModel")
    graph = Graph(config, model, task="feature-extraction", opset=opset)
    assert counted(graph) == {"Attention": 2, "RotaryEmbedding": 4, "Gelu": 2}
    assert graph.types.count("Expand") == 5  # the full mask, and two tables of cosine and sine
    assert_equal_to_torch(graph, model, config, ((1, 12), (3, 9), (2, 1)))


def test_a_bias_of_positions_is_part_of_the_mask() -> None:
    config = transformers.T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0
    )
    model = twin(config, "AutoModelForSeq2SeqLM")
    graph = Graph(config, model, task="text2text-generation", opset=24, component="encoder")
    assert counted(graph) == {"Attention": 2, "RMSNormalization": 5}
    ids = np.random.default_rng(0).integers(1, 60, (2, 9))
    mask = np.array([[1] * 9, [1] * 5 + [0] * 4])
    actual = graph.run({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
    with torch.inference_mode():
        encoder = model.get_encoder()
        expected = encoder(torch.tensor(ids), torch.tensor(mask)).last_hidden_state.numpy()
    np.testing.assert_allclose(actual[mask == 1], expected[mask == 1], atol=2e-6)


def attention(
    sketch: Sketch, *, axis: int = -1, scale: float = 0.5, mask: bool = True
) -> dict[str, Any]:
    q, k, v = (sketch.values[name] for name in "qkv")
    turned = sketch.add("Transpose", k, axes=["b", 2, 4, "t"], perm=[0, 1, 3, 2])
    scores = sketch.add("MatMul", q, turned, axes=["b", 2, "s", "t"])
    scaled = sketch.add("Mul", scores, floats(scale), axes=["b", 2, "s", "t"])
    if mask:
        scaled = sketch.add("Add", sketch.values["m"], scaled, axes=["b", 2, "s", "t"])
    probabilities = sketch.add("Softmax", scaled, axes=["b", 2, "s", "t"], axis=axis)
    y = sketch.add("MatMul", probabilities, v, axes=["b", 2, "s", 4])
    return {"y": y, "probabilities": probabilities, "scores": scores}


QKV: dict[str, Any] = {"q": ["b", 2, "s", 4], "k": ["b", 2, "t", 4], "v": ["b", 2, "t", 4]}
SHAPES: dict[str, Any] = {"q": (2, 2, 3, 4), "k": (2, 2, 5, 4), "v": (2, 2, 5, 4)}


def test_the_mask_is_wanted_for_every_query() -> None:
    sketch = Sketch(**QKV, m=["b", 1, 1, "t"])
    model = sketch.build(attention(sketch)["y"], opset=23)
    nodes = ["Shape", "Concat", "Expand", "Attention"]
    check(model, nodes, rewrite=fuse, exact=False, **SHAPES, m=(2, 1, 1, 5))


@pytest.mark.parametrize(
    ("settings", "opset", "kept"),
    [
        ({}, 22, "y"),  # an opset without the operator
        ({"axis": 2}, 23, "y"),
        ({"scale": -0.5}, 23, "y"),  # the operator takes its root
        ({}, 23, "probabilities"),  # somebody else reads what would be inside
        ({}, 23, "scores"),
    ],
)
def test_what_only_resembles_an_attention_stays(settings: Any, opset: int, kept: str) -> None:
    sketch = Sketch(**QKV, m=["b", 1, "s", "t"])
    made = attention(sketch, **settings)
    y = made["y"] if kept == "y" else sketch.add("ReduceSum", made[kept])
    if kept != "y":
        y = sketch.add("Add", y, made["y"])
    types = [node.op_type for node in sketch.nodes]
    check(sketch.build(y, opset=opset), types, rewrite=fuse, **SHAPES, m=(2, 1, 3, 5))


def normed(sketch: Sketch, *, axes: list[int], power: float = 2.0) -> Any:
    x = sketch.values["x"]
    square = sketch.add("Pow", x, floats(power), axes=["b", "s", 8])
    mean = sketch.add("ReduceMean", square, integers(axes), keepdims=1)
    root = sketch.add("Sqrt", sketch.add("Add", mean, floats(1e-3)))
    quotient = sketch.add("Mul", x, sketch.add("Reciprocal", root), axes=["b", "s", 8])
    return sketch.add("Mul", sketch.values["w"], quotient, axes=["b", "s", 8])


@pytest.mark.parametrize(
    ("settings", "found"),
    [({"axes": [-1]}, True), ({"axes": [1]}, False), ({"axes": [-1], "power": 4.0}, False)],
    ids=str,
)
def test_a_norm_is_the_mean_square_of_the_last_axis(settings: Any, found: bool) -> None:
    sketch = Sketch(x=["b", "s", 8], w=[8])
    y = normed(sketch, **settings)
    types = ["RMSNormalization"] if found else [node.op_type for node in sketch.nodes]
    model = sketch.build(y, opset=23)
    check(model, types, rewrite=fuse, exact=False, x=(2, 3, 8), w=(8,))


def test_a_table_whose_halves_differ_stays() -> None:
    sketch = Sketch(x=["b", 2, "s", 4], f=["b", "s", 2], g=["b", "s", 2])
    x = sketch.values["x"]
    both = sketch.add("Concat", sketch.values["f"], sketch.values["g"], axes=["b", "s", 4], axis=-1)
    tables = []
    for function in ("Cos", "Sin"):
        table = sketch.add(function, both, axes=["b", "s", 4])
        tables.append(sketch.add("Unsqueeze", table, integers([1]), axes=["b", 1, "s", 4]))
    first = sketch.add("Slice", x, *map(integers, ([0], [2], [3], [1])))
    second = sketch.add("Slice", x, *map(integers, ([2], [4], [3], [1])))
    turned = sketch.add("Concat", sketch.add("Neg", second), first, axes=["b", 2, "s", 4], axis=-1)
    y = sketch.add("Add", sketch.add("Mul", x, tables[0]), sketch.add("Mul", turned, tables[1]))
    types = [node.op_type for node in sketch.nodes]
    shapes = {"x": (2, 2, 3, 4), "f": (2, 3, 2), "g": (2, 3, 2)}
    check(sketch.build(y, opset=23), types, rewrite=fuse, **shapes)
