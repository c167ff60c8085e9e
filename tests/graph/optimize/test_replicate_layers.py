"""Layers stamped out of a traced one: the graph of the whole model, or a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers

from lora_export.graph import template_build as build
from lora_export.graph.optimize import complete
from lora_export.graph.optimize.fold import fold
from lora_export.graph.optimize.layer_parts import NotRepeatingError
from lora_export.graph.optimize.replicate_layers import replicate_layers
from lora_export.graph.spec import tasks
from lora_export.graph.spec.repeat import Repeat
from lora_export.graph.spec.signature import Choices
from lora_export.graph.trace.repeated_layers import leave_out_repeats
from lora_export.graph.trace.trace import trace

if TYPE_CHECKING:
    from lora_export.graph.trace.encoder_decoder import Component

LAYERS = 6
TURNS = ["sliding_attention", "sliding_attention", "full_attention"]
SMALL = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
CONFIGS = {
    "bert": (transformers.BertConfig(num_hidden_layers=LAYERS, **SMALL), "text-classification"),
    "deberta": (
        transformers.DebertaV2Config(
            num_hidden_layers=LAYERS, relative_attention=True, pos_att_type=["p2c", "c2p"],
            position_buckets=8, conv_kernel_size=3, type_vocab_size=0, **SMALL,
        ),
        "text-classification",
    ),
    "gpt2": (
        transformers.GPT2Config(
            vocab_size=60, n_embd=16, n_layer=LAYERS, n_head=2, bos_token_id=0, eos_token_id=0
        ),
        "text-generation",
    ),
    "llama": (
        transformers.LlamaConfig(num_hidden_layers=LAYERS, tie_word_embeddings=True, **SMALL),
        "text-generation",
    ),
    "gemma3": (
        transformers.Gemma3TextConfig(
            num_hidden_layers=9, layer_types=TURNS * 3, num_key_value_heads=2, head_dim=8,
            sliding_window=3, bos_token_id=1, eos_token_id=2, **SMALL,
        ),
        "text-generation",
    ),
    "t5-encoder": (
        transformers.T5Config(
            vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=LAYERS, num_heads=2
        ),
        "text2text-generation",
    ),
}  # fmt: skip
CONFIGS["t5-decoder"] = CONFIGS["t5-encoder"]
KEPT = {"gemma3": [(0, 1, 2, 5, 6, 7, 8)], "t5-encoder": [(0, 1, 4, 5)] * 2}
SLOW = {"gemma3", "t5-encoder", "t5-decoder", "deberta", "llama", "gpt2"}
COMPONENTS: dict[str, Component] = {"t5-encoder": "encoder", "t5-decoder": "decoder"}


def traced_and_folded(
    config: Any, task_name: str, *, every_layer: bool = False, component: Component | None = None
):
    task = tasks.by_name(task_name)
    traced = trace(
        config.to_dict(), task, "float32", 18, every_layer=every_layer, component=component
    )
    return traced, fold(traced.model, traced.parameters, traced.signature)


def run(model: ir.Model, parameters: Any, state: dict[str, torch.Tensor]) -> list[np.ndarray]:
    for parameter in parameters:
        value = state[parameter.name].numpy()
        value = np.ascontiguousarray(value.T if parameter.transposed else value)
        model.graph.initializers[parameter.name].const_value = ir.Tensor(value, name=parameter.name)
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ids = np.arange(22).reshape(2, 11) % 60
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.tile(np.arange(11), (2, 1)),
        "encoder_attention_mask": np.ones((2, 4), np.int64),
    }
    past = np.random.default_rng(0).standard_normal((2, 2, 4, 8)).astype(np.float32)
    inputs = session.get_inputs()
    if cached := [node.name for node in inputs if node.name.startswith("past_key_values.")]:
        feeds["attention_mask"] = np.ones((2, 15), np.int64)
        feeds |= {name: past * (number + 1) for number, name in enumerate(cached)}
    return session.run(None, {node.name: feeds[node.name] for node in inputs})


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in CONFIGS],
)
def test_stamped_graph_is_the_graph_of_the_whole_model(kind: str) -> None:
    config, task = CONFIGS[kind]
    component = COMPONENTS.get(kind)
    traced, parameters = traced_and_folded(config, task, component=component)
    expected_kept = KEPT.get(kind, KEPT["t5-encoder"] if component else [(0, 1, 4, 5)])
    assert [repeat.kept for repeat in traced.repeats] == expected_kept
    short = len(traced.model.graph)
    stamped = replicate_layers(traced.model, parameters, traced.repeats)
    whole, expected = traced_and_folded(config, task, every_layer=True, component=component)

    assert len(traced.model.graph) == len(whole.model.graph) > short
    assert stamped == expected
    torch.manual_seed(0)
    model = getattr(transformers, tasks.by_name(task).auto_class).from_config(config)
    state = {name: torch.randn_like(value) * 0.2 for name, value in model.state_dict().items()}
    for ours, theirs in (
        (traced.model.graph.inputs, whole.model.graph.inputs),
        (traced.model.graph.outputs, whole.model.graph.outputs),
    ):
        assert [(v.name, v.shape, v.type) for v in ours] == [
            (v.name, v.shape, v.type) for v in theirs
        ]
    results = zip(run(traced.model, stamped, state), run(whole.model, expected, state), strict=True)
    for actual, wanted in results:
        np.testing.assert_array_equal(actual, wanted)


def test_layers_that_differ_by_their_index_are_traced_one_by_one() -> None:
    config, task = CONFIGS["gpt2"]
    scaled = transformers.GPT2Config(**config.to_dict() | {"scale_attn_by_inverse_layer_idx": True})
    traced, _ = traced_and_folded(scaled, task)
    assert traced.repeats == ()


def test_layer_that_was_changed_is_not_stamped() -> None:
    traced, parameters = traced_and_folded(*CONFIGS["bert"])
    (reader, _), *_ = traced.model.graph.initializers[
        "bert.encoder.layer.2.attention.output.LayerNorm.weight"
    ].uses()
    reader.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.5)
    with pytest.raises(NotRepeatingError):
        replicate_layers(traced.model, parameters, traced.repeats)


def test_layer_that_skips_a_connection_is_not_stamped() -> None:
    traced, parameters = traced_and_folded(*CONFIGS["bert"])
    graph = traced.model.graph
    (first, _), *_ = graph.initializers["bert.encoder.layer.1.output.dense.weight"].uses()
    (head, _), *_ = graph.initializers["classifier.weight"].uses()
    added = ir.node("Add", [head.inputs[0], first.outputs[0]])
    graph.insert_before(head, added)
    head.replace_input_with(0, added.outputs[0])
    with pytest.raises(NotRepeatingError):
        replicate_layers(traced.model, parameters, traced.repeats)


def test_model_whose_layers_cannot_be_stamped_is_traced_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, task = CONFIGS["bert"]
    settings, row = config.to_dict(), tasks.by_name(task)
    stamped = build.build_template(settings, row, "float32", 18, Choices())

    def refuse(_: ir.Model, parameters: Any, repeats: Any) -> Any:
        if repeats:
            raise NotRepeatingError
        return parameters

    monkeypatch.setattr(complete, "replicate_layers", refuse)
    whole = build.build_template(settings, row, "float32", 18, Choices())
    assert whole.parameters == stamped.parameters


class Layer(torch.nn.Module):
    def __init__(self, index: int, **settings: Any) -> None:
        super().__init__()
        self.layer_idx = index
        self.linear = torch.nn.Linear(4, settings.pop("width", 4))
        self.register_buffer("table", torch.full((2,), float(settings.pop("value", 0))))
        self.settings = {"window": None, **settings}


class Model(torch.nn.Module):
    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(layers)


class Config:
    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)


def kept_of(*layers: Layer, **settings: Any) -> list[int]:
    """Return which layers are left."""
    model = Model(*layers)
    model.config = Config(**settings)
    leave_out_repeats(model)
    return [layer.layer_idx for layer in model.blocks]


def test_equal_layers_are_cut_down_to_the_first_two_and_the_last_two() -> None:
    model = Model(*map(Layer, range(9)))
    assert leave_out_repeats(model) == (Repeat("blocks", (0, *[1] * 8), (0, 1, 7, 8)),)
    assert [layer.layer_idx for layer in model.blocks] == [0, 1, 7, 8]


@pytest.mark.parametrize("odd", [{"width": 5}, {"value": 1}, {"window": 3}, {"extra": 1}], ids=str)
def test_one_odd_layer_is_kept_among_the_others(odd: dict[str, Any]) -> None:
    layers = [Layer(index, **(odd if index == 6 else {})) for index in range(14)]
    assert kept_of(*layers) == [0, 1, 2, 6, 12, 13]


def test_number_that_only_looks_like_an_index_is_a_setting() -> None:
    assert kept_of(*(Layer(index, heads=4) for index in range(9))) == [0, 1, 7, 8]
    layers = [Layer(index, heads=index if index in {3, 5} else 1) for index in range(12)]
    assert {3, 5} <= set(kept_of(*layers))
    assert kept_of(*(Layer(index, heads=1 + index % 2) for index in range(9))) == [0, 1, 2, 6, 7, 8]


def test_layers_of_two_kinds_that_take_turns_are_kept_twice_each() -> None:
    layers = [Layer(index, window=3 if index % 3 == 2 else None) for index in range(12)]
    assert kept_of(*layers) == [0, 1, 2, 8, 9, 10, 11]


def test_lists_by_layer_are_cut_with_the_layers() -> None:
    kinds = ["sliding", "sliding", "full"] * 4
    model = Model(*map(Layer, range(12)))
    model.config = Config(layer_types=kinds, uniform=["any"] * 12)
    (repeat,) = leave_out_repeats(model)
    assert model.config.layer_types == [kinds[number] for number in repeat.kept]
    assert [repeat.kinds[number] for number in (1, 2, 3, 4, 5)] == [1, 2, 1, 1, 2]
    assert model.config.uniform == ["any"] * 12


def test_list_of_another_meaning_keeps_all_layers() -> None:
    assert len(kept_of(*map(Layer, range(9)), scales=list(range(9)))) == 9
    model = Model(*map(Layer, range(9)))
    model.layer_scales = list(range(9))
    assert leave_out_repeats(model) == ()


def test_list_that_says_something_else_of_every_layer_keeps_them_all() -> None:
    assert len(kept_of(*map(Layer, range(9)), layer_scales=list(range(9)))) == 9


def test_few_layers_are_left_alone() -> None:
    assert leave_out_repeats(Model(*map(Layer, range(5)))) == ()
