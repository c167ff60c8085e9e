"""Rewrites of small graphs: the same numbers in ONNX Runtime, fewer nodes, and what stays."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.optimize.sketch import Sketch, check, floats, integers

WIDTH = 8


def dynamic_shape(sketch, x, tail):
    batch = sketch.add("Shape", x, dtype=ir.DataType.INT64, start=0, end=1)
    length = sketch.add("Shape", x, dtype=ir.DataType.INT64, start=1, end=2)
    return sketch.add("Concat", batch, length, integers(tail), dtype=ir.DataType.INT64, axis=0)


def test_axes_that_stay_are_copied_by_a_constant_shape() -> None:
    sketch = Sketch(x=["b", "s", WIDTH])
    x = sketch.values["x"]
    y = sketch.add("Reshape", x, dynamic_shape(sketch, x, [2, 4]), axes=["b", "s", 2, 4])
    model = sketch.build(y)
    check(model, ["Reshape"], x=(2, 3, WIDTH))
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [0, 0, 2, 4]


def test_a_reshape_to_its_own_shape_disappears() -> None:
    sketch = Sketch(x=["b", "s", WIDTH])
    x = sketch.values["x"]
    y = sketch.add("Reshape", x, dynamic_shape(sketch, x, [WIDTH]), axes=["b", "s", WIDTH])
    check(sketch.build(sketch.add("Relu", y)), ["Relu"], x=(2, 3, WIDTH))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["b", "p", WIDTH], ["c", "p", 2, 4]),  # the past may be empty, and -1 then means nothing
        (["b", "s", WIDTH], ["c", "t", 2, 4]),  # nothing says where two axes come from
        (["b", "s", WIDTH], [None, None, 2, 4]),
    ],
)
def test_a_shape_that_does_not_follow_from_the_axes_stays_computed(before, after) -> None:
    sketch = Sketch(x=before)
    x = sketch.values["x"]
    y = sketch.add("Reshape", x, dynamic_shape(sketch, x, [2, 4]), axes=after)
    check(sketch.build(y), ["Shape", "Shape", "Concat", "Reshape"], x=(2, 0, WIDTH))


@pytest.mark.parametrize(("number", "kept"), [(0.0, False), (0.5, True)])
def test_what_adds_nothing_disappears(number, kept) -> None:
    sketch = Sketch(x=["b", "s", WIDTH])
    x = sketch.values["x"]
    y = sketch.add("Add", floats([[[number]]]), x, axes=["b", "s", WIDTH])
    model = sketch.build(sketch.add("Relu", y))
    check(model, ["Add", "Relu"] if kept else ["Relu"], x=(2, 3, WIDTH))


def affine(sketch, x, axes, **attributes):
    """Return what ``addmm`` of `x` as rows becomes, unflattened."""
    random = np.random.default_rng(1)
    rows = sketch.add("Reshape", x, integers([-1, WIDTH]), axes=["b*s", WIDTH])
    weight, bias = random.normal(size=(WIDTH, WIDTH)), random.normal(size=WIDTH)
    product = sketch.add("Gemm", rows, floats(weight), floats(bias), axes=["b*s", WIDTH],
                         **attributes)  # fmt: skip
    shape = dynamic_shape(sketch, x, [WIDTH])
    return sketch.add("Reshape", product, shape, axes=axes)


def test_a_product_of_rows_becomes_one_of_all_axes() -> None:
    sketch = Sketch(x=["b", "s", WIDTH])
    y = affine(sketch, sketch.values["x"], ["b", "s", WIDTH], alpha=1.0, beta=1.0)
    check(sketch.build(y), ["MatMul", "Add"], exact=False, x=(2, 3, WIDTH))


def test_heads_are_merged_before_the_product() -> None:
    sketch = Sketch(x=["b", "s", 2, 4])
    y = affine(sketch, sketch.values["x"], ["b", "s", WIDTH])
    check(sketch.build(y), ["Reshape", "MatMul", "Add"], exact=False, x=(2, 3, 2, 4))


@pytest.mark.parametrize("attributes", [{"transB": 1}, {"alpha": 2.0}, {"beta": 0.5}], ids=str)
def test_a_gemm_that_does_more_than_a_product_stays(attributes) -> None:
    sketch = Sketch(x=["b", "s", WIDTH])
    y = affine(sketch, sketch.values["x"], ["b", "s", WIDTH], **attributes)
    nodes = ["Reshape", "Gemm", "Reshape", "Shape", "Shape", "Concat"]
    check(sketch.build(y), nodes, x=(2, 3, WIDTH))


def test_an_rms_norm_divides_by_the_root() -> None:
    sketch = Sketch(x=["b", "s", WIDTH])
    x = sketch.values["x"]
    mean = sketch.add("ReduceMean", sketch.add("Mul", x, x), integers([-1]), keepdims=1)
    root = sketch.add("Sqrt", sketch.add("Add", mean, floats(1e-6)))
    y = sketch.add("Mul", x, sketch.add("Reciprocal", root))
    nodes = ["Mul", "ReduceMean", "Add", "Sqrt", "Div"]
    check(sketch.build(y), nodes, exact=False, x=(2, 3, WIDTH))


def gelu_erf(sketch, x, half=0.5):
    erf = sketch.add("Erf", sketch.add("Div", x, floats(math.sqrt(2))))
    return sketch.add("Mul", x, sketch.add("Mul", floats(half), sketch.add("Add", erf, floats(1))))


def gelu_tanh(sketch, x, cubic=0.044715):
    cube = sketch.add("Mul", sketch.add("Pow", x, floats(3)), floats(cubic))
    inner = sketch.add("Mul", sketch.add("Add", x, cube), floats(math.sqrt(2 / math.pi)))
    factor = sketch.add("Add", sketch.add("Tanh", inner), floats(1))
    return sketch.add("Mul", sketch.add("Mul", x, floats(0.5)), factor)


@pytest.mark.parametrize("make", [gelu_erf, gelu_tanh])
def test_gelu_is_one_node_from_opset_20(make) -> None:
    sketch = Sketch(x=["b", "s", WIDTH])
    model = sketch.build(make(sketch, sketch.values["x"]))
    check(model, ["Gelu"], exact=False, x=(2, 3, WIDTH))


def test_gelu_of_an_older_opset_is_ordered_as_runtimes_expect_it() -> None:
    sketch = Sketch(x=["b", "s", WIDTH])
    model = sketch.build(gelu_erf(sketch, sketch.values["x"]), opset=18)
    check(model, ["Div", "Erf", "Add", "Mul", "Mul"], x=(2, 3, WIDTH))
    assert {value.producer().op_type for value in model.graph[-1].inputs if value.producer()} == {
        "Mul"
    }
    assert model.graph.outputs[0].producer().inputs[1].const_value.numpy() == np.float32(0.5)


@pytest.mark.parametrize("make", [gelu_erf, gelu_tanh])
def test_what_only_resembles_gelu_stays(make) -> None:
    sketch = Sketch(x=["b", "s", WIDTH])
    y = make(sketch, sketch.values["x"], 0.3)
    nodes = [node.op_type for node in sketch.nodes]
    check(sketch.build(y), nodes, x=(2, 3, WIDTH))


def rotated(sketch, x, sin, middle=WIDTH // 2):
    first = sketch.add("Slice", x, *map(integers, ([0], [middle], [3], [1])))
    second = sketch.add("Slice", x, *map(integers, ([middle], [2**63 - 1], [3], [1])))
    halves = sketch.add("Concat", sketch.add("Neg", second), first, axes=["b", 2, "s", WIDTH],
                        axis=-1)  # fmt: skip
    return sketch.add("Mul", halves, sin, axes=["b", 2, "s", WIDTH])


@pytest.mark.parametrize(("middle", "found"), [(4, True), (3, False)])
def test_signs_of_a_rotation_are_in_the_table_once(middle, found) -> None:
    sketch = Sketch(q=["b", 2, "s", WIDTH], k=["b", 2, "s", WIDTH], t=["b", 1, "s", WIDTH])
    sin = sketch.add("Sin", sketch.values["t"], axes=["b", 1, "s", WIDTH])
    both = [rotated(sketch, sketch.values[name], sin, middle) for name in ("q", "k")]
    model = sketch.build(sketch.add("Add", *both))
    each = ["Split", "Concat", "Mul"] if found else ["Slice", "Slice", "Neg", "Concat", "Mul"]
    nodes = ["Sin", *each, *each, "Add", *(["Mul"] if found else [])]
    shape = (2, 2, 3, WIDTH)
    check(model, nodes, q=shape, k=shape, t=(2, 1, 3, WIDTH))
