"""A decoder that another exporter wrote, as ONNX Runtime opens it: run here, or refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.errors import UnsupportedError
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
