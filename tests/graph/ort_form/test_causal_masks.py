"""Masks that are computed to see whether they are causal, and with which window."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.errors import UnsupportedError
from lora_export.graph.ort_form.causal_masks import window_of_mask

LEAST = float(np.finfo(np.float32).min)


def masked(*, window: int = 0, ahead: int = 0, padding: bool = True, hidden: float = LEAST) -> Any:
    """Return a graph with a mask: past + new positions, of which a query sees what it may."""
    values = {
        "axes": [1, 2], "queries": [0, 1, 3], "ahead": ahead, "window": window or 1 << 40,
        "zero": 0, "step": 1,
    }  # fmt: skip
    text: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Shape", ["input_ids"], "new", {"start": 1}),
        ("Shape", ["attention_mask"], "all", {"start": 1}),
        ("Sub", ["all", "new"], "past", {}),
        ("Squeeze", ["all"], "total", {}),
        ("Squeeze", ["past"], "begin", {}),
        ("Range", ["zero", "total", "step"], "keys", {}),
        ("Range", ["begin", "total", "step"], "positions", {}),
        ("Unsqueeze", ["positions", "queries"], "rows", {}),
        ("Add", ["rows", "ahead"], "last", {}),
        ("LessOrEqual", ["keys", "last"], "causal", {}),
        ("Sub", ["rows", "window"], "before", {}),
        ("Greater", ["keys", "before"], "near", {}),
        ("And", ["causal", "near"], "seen", {}),
        ("Unsqueeze", ["attention_mask", "axes"], "tokens", {}),
        ("Cast", ["tokens"], "real", {"to": TensorProto.BOOL}),
        ("And", ["seen", "real" if padding else "seen"], "counts", {}),
        ("Where", ["counts", "nothing", "hidden"], "mask", {}),
    ]
    initializers = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in values.items()]
    initializers += [
        numpy_helper.from_array(np.array(0, np.float32), "nothing"),
        numpy_helper.from_array(np.array(hidden, np.float32), "hidden"),
    ]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info(
            "attention_mask", TensorProto.INT64, ["batch", "total_sequence"]
        ),
    ]
    graph = helper.make_graph(
        [helper.make_node(k, i, [o], **attributes) for k, i, o, attributes in text],
        "masks", inputs, [onnx.ValueInfoProto(name="mask")], initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


@pytest.mark.parametrize(
    ("window", "positions", "found"),
    [(0, 64, None), (0, None, None), (4, 64, 4), (1, 64, 1), (63, 64, 63), (64, 64, None),
     (200, 64, None), (200, None, 200)],
)  # fmt: skip
def test_windows_are_found(window, positions, found):
    assert window_of_mask(masked(window=window), "mask", positions) == found


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ahead": 1}, "is not causal"),
        ({"ahead": -1}, "is not causal"),
        ({"padding": False}, "is not causal"),
        ({"hidden": -2.0}, "is a bias"),
    ],
)
def test_what_the_operator_does_not_do_is_refused(changes, named):
    with pytest.raises(UnsupportedError, match=named):
        window_of_mask(masked(**changes), "mask", 64)
