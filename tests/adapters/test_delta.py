"""The delta maths against NumPy in float64, in all three layouts and by any blocks of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_export.adapters.canonical import LowRank
from lora_export.adapters.delta import factors_of, read_finite
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import AdapterError
from lora_export.core.parameters import Parameter
from lora_export.core.tensors import MemoryTensor


def tensor(values: np.ndarray, dtype: str = "float32", name: str = "x") -> MemoryTensor:
    return MemoryTensor(name, DTYPES[dtype], values.astype(DTYPES[dtype].numpy))


LAYOUTS = {
    # module type, stored transposed → is the row of what is held an input?
    ("Linear", False): False,
    ("Linear", True): True,
    ("Conv1D", False): True,
    ("Conv1D", True): False,
    ("Embedding", False): True,
    ("Embedding", True): False,
}


@pytest.mark.parametrize(("module_type", "transposed"), LAYOUTS)
@given(
    sizes=st.tuples(*[st.integers(1, limit) for limit in (9, 9, 5, 10)]),
    scale=st.floats(-8, 8, allow_nan=False),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_numpy_in_float64(module_type, transposed, *, sizes, scale, dtype, seed):
    inputs, outputs, r, block = sizes
    random = np.random.default_rng(seed)
    a = tensor(random.standard_normal((r, inputs)), dtype)
    b = tensor(random.standard_normal((outputs, r)), dtype)
    delta = scale * (b.values.astype(np.float64) @ a.values.astype(np.float64))  # (out, in)
    held_by_input = LAYOUTS[module_type, transposed]
    expected_delta = delta.T if held_by_input else delta
    base = random.standard_normal(expected_delta.shape).astype(np.float32)

    # The model's own layout: an embedding is [vocabulary, width], so A is [r, vocabulary].
    shape = (outputs, inputs) if module_type == "Linear" else (inputs, outputs)
    update = LowRank("m", a, b, scale, embedding=module_type == "Embedding")
    parameter = Parameter("m.weight", shape, "float32", module_type, transposed)
    assert parameter.stored_shape == base.shape
    factors = factors_of(update, parameter, transposed=transposed)
    found = np.concatenate(
        [
            factors.apply(base[start : start + block].copy(), start)
            for start in range(0, len(base), block)
        ]
    )
    assert found.dtype == np.float32
    expected = base.astype(np.float64) + expected_delta
    size = np.abs(base) + abs(scale) * r * 25  # a bound on the terms of each sum
    assert (np.abs(found - expected) <= 1e-6 * size).all()


def test_a_hand_case():
    a = tensor(np.array([[1.0, 2.0, 3.0]]))  # (1, 3)
    b = tensor(np.array([[10.0], [20.0]]))  # (2, 1)
    update = LowRank("m", a, b, 0.5)
    linear = Parameter("m.weight", (2, 3), "float32", "Linear")
    zeros = np.zeros((2, 3), np.float32)
    found = factors_of(update, linear, transposed=False).apply(zeros, 0)
    np.testing.assert_array_equal(found, [[5, 10, 15], [10, 20, 30]])
    conv = Parameter("m.weight", (3, 2), "float32", "Conv1D")
    found = factors_of(update, conv, transposed=False).apply(zeros.reshape(3, 2), 0)
    np.testing.assert_array_equal(found, [[5, 10], [10, 20], [15, 30]])


def test_the_base_is_not_changed_in_place():
    rows = np.ones((2, 3), np.float32)
    update = LowRank("m", tensor(np.ones((1, 3))), tensor(np.ones((2, 1))), 1.0)
    parameter = Parameter("m.weight", (2, 3), "float32", "Linear")
    factors_of(update, parameter, transposed=False).apply(rows, 0)
    np.testing.assert_array_equal(rows, np.ones((2, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_not_finite_is_refused_by_name(bad, which, dtype):
    values = {"a": np.ones((2, 3)), "b": np.ones((4, 2))}
    values[which][1, 1] = bad
    update = LowRank(
        "m", tensor(values["a"], dtype, "q.lora_A"), tensor(values["b"], dtype, "q.lora_B"), 1.0
    )
    parameter = Parameter("m.weight", (4, 3), "float32", "Linear")
    with pytest.raises(AdapterError, match=rf"q\.lora_{which.upper()}.*NaN or infinity"):
        factors_of(update, parameter, transposed=False)


def test_a_float64_value_that_float32_cannot_hold_is_refused():
    with pytest.raises(AdapterError, match="NaN or infinity"):
        read_finite(tensor(np.array([1e300]), "float64"))
