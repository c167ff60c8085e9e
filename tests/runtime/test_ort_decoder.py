"""A decoder that another exporter wrote, as ONNX Runtime opens it: run here, or refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.errors import UnsupportedError
from lora_export.core.graph_forms import FORM_PROPERTY, ORT_FORM
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.ort_decoder import OrtDecoder
from lora_export.runtime.text_generation import Sampling, generate

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 30
PAST = "past_key_values.0.key"


def save_decoder(
    path: Path,
    *,
    ids: int = TensorProto.INT64,
    past: str = PAST,
    present: str = "present.0.key",
    logits: str = "logits",
    heads: int | str = 1,
    further: tuple[onnx.ValueInfoProto, ...] = (),
) -> OrtRunner:
    """Save a model whose cache is the tokens that it has read; open it.

    The logits of a position are ``sin(f · s)`` for each f of a table, s the sum of the tokens so
    far; positions that are masked are not counted.
    """
    table = np.arange(1, VOCABULARY + 1, dtype=np.float32) * 0.37
    constants = [
        ("table", table), ("axes", np.array([1, 3])), ("last", np.array([3])),
        ("one", np.array([1])), ("two", np.array(2)), ("top", np.array([2**31])),
    ]  # fmt: skip
    nodes = [
        helper.make_node("Shape", [past], ["old"], start=2, end=3),
        helper.make_node("Slice", ["attention_mask", "old", "top", "one"], ["mask"]),
        helper.make_node("Mul", ["input_ids", "mask"], ["counted"]),
        helper.make_node("Cast", ["counted"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "axes"], ["new"]),
        helper.make_node("Concat", [past, "new"], [present], axis=2),
        helper.make_node("CumSum", [present, "two"], ["sums"]),
        helper.make_node("Slice", ["sums", "old", "top", "position_axis"], ["own"]),
        helper.make_node("Mul", ["own", "table"], ["angles"]),
        helper.make_node("Sin", ["angles"], ["waves"]),
        helper.make_node("Squeeze", ["waves", "one"], [logits]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "main",
        [
            info("input_ids", ids, ["b", "n"]), info("attention_mask", ids, ["b", "t"]),
            info(past, TensorProto.FLOAT, ["b", heads, "p", 1]), *further,
        ],
        [
            info(logits, TensorProto.FLOAT, ["b", "n", VOCABULARY]),
            info(present, TensorProto.FLOAT, ["b", heads, "t", 1]),
        ],
        [
            *(numpy_helper.from_array(value, name) for name, value in constants),
            numpy_helper.from_array(np.array([2]), "position_axis"),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return OrtRunner(path)


def tokens_of(decoder: OrtDecoder, prompts: list[list[int]], steps: int) -> list[list[int]]:
    found = generate(
        decoder, prompts, max_new_tokens=steps, sampling=Sampling(), stop=(), padding=0
    )
    return np.array(list(found)).T.tolist()


def expected(prompt: list[int], steps: int) -> list[int]:
    total, found = sum(prompt), []
    for _ in range(steps):
        token = int(np.sin(np.arange(1, VOCABULARY + 1, dtype=np.float32) * 0.37 * total).argmax())
        found.append(token)
        total += token
    return found


@pytest.mark.parametrize(
    "form", [{}, {"ids": TensorProto.INT32}, {"logits": "output"}], ids=["as ours", "int32", "name"]
)
def test_decoder_of_another_exporter_is_run(tmp_path: Path, form: Any) -> None:
    prompts = [[3, 4, 5], [7]]
    decoder = OrtDecoder(save_decoder(tmp_path / "m.onnx", **form))
    assert tokens_of(decoder, prompts, 5) == [expected(prompt, 5) for prompt in prompts]


SWITCH = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"further": (SWITCH,)}, "also takes 'use_cache_branch'"),
        ({"present": "new.0.key"}, "returns no 'present.0.key'"),
        ({"heads": "h"}, r"\['b', 'h', 'p', 1\], not \[batch, heads, length, width\]"),
        ({"past": "memory.0"}, "no cache"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_decoder_that_cannot_be_run_is_refused(tmp_path: Path, form: Any, said: str) -> None:
    runner = save_decoder(tmp_path / "m.onnx", **form)
    with pytest.raises(UnsupportedError, match=said):
        OrtDecoder(runner)


def save_attention(path: Path) -> OrtRunner:
    """Save an attention of ONNX Runtime's form over the rows of a table; open it."""
    random = np.random.default_rng(0)
    constants = [
        ("table", random.standard_normal((VOCABULARY, 3 * 16)).astype(np.float32)),
        ("head", random.standard_normal((16, VOCABULARY)).astype(np.float32)),
        ("axis", np.array([1])), ("one", np.array(1)),
    ]  # fmt: skip
    attention = helper.make_node(
        "GroupQueryAttention",
        ["qkv", "", "", PAST, "past_key_values.0.value", "seqlens", "total"],
        ["states", "present.0.key", "present.0.value"],
        domain="com.microsoft", num_heads=1, kv_num_heads=1,
    )  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["qkv"]),
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["sums"], keepdims=0),
        helper.make_node("Sub", ["sums", "one"], ["lasts"]),
        helper.make_node("Cast", ["lasts"], ["seqlens"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["all"], start=1),
        helper.make_node("Cast", ["all"], ["total"], to=TensorProto.INT32),
        attention,
        helper.make_node("MatMul", ["states", "head"], ["logits"]),
    ]
    info = helper.make_tensor_value_info
    names = ("key", "value")
    graph = helper.make_graph(
        nodes, "main",
        [
            info("input_ids", TensorProto.INT64, ["b", "n"]),
            info("attention_mask", TensorProto.INT64, ["b", "t"]),
            *(info(f"past_key_values.0.{n}", TensorProto.FLOAT, ["b", 1, "p", 16]) for n in names),
        ],
        [
            info("logits", TensorProto.FLOAT, ["b", "n", VOCABULARY]),
            *(info(f"present.0.{n}", TensorProto.FLOAT, ["b", 1, "t", 16]) for n in names),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    helper.set_model_props(model, {FORM_PROPERTY: ORT_FORM})
    onnx.save(model, path)
    return OrtRunner(path)


def test_one_buffer_is_past_and_present_of_every_step(tmp_path: Path) -> None:
    runner = save_attention(tmp_path / "m.onnx")
    decoder = OrtDecoder(runner, length=12)
    decoder.start(2)
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (2, 14))
    places = set()
    pieces = []
    for start, end in ((0, 5), *((at, at + 1) for at in range(5, 12))):
        mask = np.ones((2, end), np.int64)
        pieces.append(decoder.logits({"input_ids": ids[:, start:end], "attention_mask": mask}))
        places.add(decoder.cache_pointers)
    assert len(places) == 1
    for at in (12, 13):  # longer than was said: the buffers grow once
        mask = np.ones((2, at + 1), np.int64)
        pieces.append(decoder.logits({"input_ids": ids[:, at : at + 1], "attention_mask": mask}))
        places.add(decoder.cache_pointers)
    assert len(places) == 2
    past = {f"past_key_values.0.{n}": np.zeros((2, 1, 0, 16), np.float32) for n in ("key", "value")}
    whole = {"input_ids": ids, "attention_mask": np.ones((2, 14), np.int64), **past}
    expected = runner.run(whole)["logits"]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, atol=1e-5)


def test_arrays_with_room_are_written_and_returned(tmp_path: Path) -> None:
    runner = save_attention(tmp_path / "m.onnx")
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (2, 6))
    names = ("past_key_values.0.key", "past_key_values.0.value")
    room = {name: np.zeros((2, 1, 9, 16), np.float32) for name in names}
    grown = {name: np.zeros((2, 1, 0, 16), np.float32) for name in names}
    for start, end in ((0, 4), (4, 5), (5, 6)):
        text = {"input_ids": ids[:, start:end], "attention_mask": np.ones((2, end), np.int64)}
        found, expected = runner.run({**text, **room}), runner.run({**text, **grown})
        np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-6)
        present = {name: name.replace("past_key_values", "present") for name in names}
        assert all(found[present[name]] is room[name] for name in names)
        grown = {name: expected[present[name]] for name in names}
        for name in names:
            np.testing.assert_array_equal(room[name][:, :, :end], grown[name])
    fixed = {name: value.copy() for name, value in room.items()}
    for value in fixed.values():
        value.flags.writeable = False
    text = {"input_ids": ids[:, :1], "attention_mask": np.ones((2, 7), np.int64)}
    copied = runner.run({**text, **fixed})["present.0.key"]
    assert copied is not fixed[names[0]]
    np.testing.assert_array_equal(fixed[names[0]], room[names[0]])
