"""The estimate of memory, against sums made by hand, and what it says of a device."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.targets import TARGETS
from lora_export.engines.graph_view import view
from lora_export.engines.memory_need import Memory, check_memory, estimate_memory
from lora_export.ondevice.trt.build_settings import ShapeRange

GIB = 1 << 30
ORIN, H100 = TARGETS["jetson-orin"], TARGETS["h100"]


def chain():
    """Return ``x [batch, 8] @ W [8, 32]``, two Relus, ``@ V [32, 4]``, and a cache beside it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "v"], ["y"]),
        helper.make_node("Identity", ["past_key_values.0.key"], ["present.0.key"]),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8]),
        helper.make_tensor_value_info(
            "past_key_values.0.key", TensorProto.FLOAT16, ["batch", 2, "past_sequence", 4]
        ),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("present.0.key", TensorProto.FLOAT16, None),
    ]
    weights = [
        numpy_helper.from_array(np.ones((8, 32), np.float32), "w"),
        numpy_helper.from_array(np.ones((32, 4), np.float32), "v"),
    ]
    graph = helper.make_graph(nodes, "main", values, outputs, weights)
    return view(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def profile(batch: int, past: int) -> dict[str, ShapeRange]:
    x, cache = (batch, 8), (batch, 2, past, 4)
    return {"x": ShapeRange(x, x, x), "past_key_values.0.key": ShapeRange(cache, cache, cache)}


def test_the_sums():
    memory = estimate_memory(chain(), [profile(batch=16, past=10)])
    cache = 2 * (16 * 2 * 10 * 4 * 2)  # in and out, two bytes each
    assert memory.weights_bytes == (8 * 32 + 32 * 4) * 4
    assert memory.cache_bytes == cache
    assert memory.io_bytes == cache + 16 * 8 * 4 + 16 * 4 * 4
    assert memory.activations_bytes == 2 * 16 * 32 * 4  # two of a, b, c live at once
    assert memory.run_bytes == memory.weights_bytes + memory.io_bytes + memory.activations_bytes
    low, high = memory.build_bytes
    assert high - low == memory.weights_bytes
    assert low == memory.run_bytes + 2 * memory.weights_bytes


def test_of_several_profiles_the_largest_counts():
    one, other = profile(batch=16, past=10), profile(batch=2, past=500)
    both = estimate_memory(chain(), [one, other])
    assert both.cache_bytes == estimate_memory(chain(), [other]).cache_bytes
    assert both.activations_bytes == estimate_memory(chain(), [one]).activations_bytes


def test_without_a_profile_only_the_weights_are_known():
    memory = estimate_memory(chain(), [])
    assert memory.io_bytes is None
    assert memory.run_bytes == memory.weights_bytes


def test_values_without_a_known_shape_are_counted():
    nodes = [
        helper.make_node("Strange", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in "xy")
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "main", [x], [y])
    memory = estimate_memory(view(helper.make_model(graph, opset_imports=imports)), [])
    assert (memory.unknown, memory.activations_bytes) == (1, 0)
    assert estimate_memory(chain(), [profile(batch=2, past=1)]).unknown == 0


def test_shapes_that_contradict_each_other_are_not_known():
    seen = chain()
    seen.model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 8), np.float32), "x"))
    memory = estimate_memory(seen, [profile(batch=16, past=10)])
    assert memory.activations_bytes is None


def severities(memory: Memory, target, memory_gib=None) -> dict[str, str]:
    return {each.code: each.severity for each in check_memory(memory, target, memory_gib)}


@pytest.mark.parametrize(
    ("weights_gib", "target", "memory_gib", "expected"),
    [
        (0.5, ORIN, None, {}),
        (2, ORIN, None, {"memory-build": "warning"}),
        (5, ORIN, None, {"memory-run": "warning", "memory-build": "warning"}),
        (20, ORIN, None, {"memory-run": "warning", "memory-build": "warning"}),
        (30, ORIN, None, {"memory-run": "warning", "memory-build": "error"}),
        (90, ORIN, None, {"memory-run": "error", "memory-build": "error"}),
        (2, ORIN, 8, {}),
        (2.5, ORIN, 8, {"memory-build": "warning"}),
        (2.5, ORIN, 4, {"memory-build": "error"}),
        (25, H100, None, {"memory-build": "warning"}),
        (1000, TARGETS["auto"], None, {}),
    ],
)
def test_what_a_device_holds(weights_gib, target, memory_gib, expected):
    memory = Memory(int(weights_gib * GIB), 0, 0, 0)
    assert severities(memory, target, memory_gib) == expected


def test_the_message_names_the_sizes_that_are_enough():
    (build,) = check_memory(Memory(2 * GIB, 0, 0, 0), ORIN, None)
    assert "about 6.0 to 8.0 GiB" in build.message
    assert "enough with 8, 16, 32, 64" in build.message
    assert "the device's as well" in build.hint
