"""Values as they are stored, base and merged: against NumPy, whatever the blocks."""

from __future__ import annotations

from math import prod

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_export.adapters.canonical import LowRank, Saved
from lora_export.adapters.resolve import Update
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import AdapterError, InputError
from lora_export.core.parameters import Parameter
from lora_export.weights import rows
from lora_export.weights.stream import base_entry, merged_entry, zero_entry
from tests.helpers.weight_entries import (
    MERGED,
    RANDOM,
    A,
    B,
    W,
    collect,
    linear,
    relative,
    tensor,
    update,
)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_base_is_stored_bit_for_bit_in_the_graphs_layout(dtype, transposed):
    values = W.astype(DTYPES[dtype].numpy)
    entry = base_entry(linear(dtype, transposed=transposed), tensor(values))
    found = collect(entry)
    expected = values.T if transposed else values
    assert entry.shape == expected.shape
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("source", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("target", ["float16", "float32", "bfloat16"])
def test_the_base_is_cast_as_numpy_casts(source, target):
    values = W.astype(DTYPES[source].numpy)
    found = collect(base_entry(linear(target), tensor(values)))
    # float64 goes through float32, the dtype of all arithmetic.
    expected = values.astype(np.float32).astype(DTYPES[target].numpy)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (2, 3, 4), (1, 1)])
def test_shapes_of_every_kind(shape):
    values = np.arange(prod(shape), dtype=np.float32).reshape(shape)
    parameter = Parameter("p", shape, "float32", "buffer")
    assert collect(base_entry(parameter, tensor(values))).tobytes() == values.tobytes()


def test_integers_are_kept_and_cast_as_integers():
    values = np.array([2**40 + 1, -3], np.int64)
    parameter = Parameter("p", (2,), "int64", "buffer")
    np.testing.assert_array_equal(collect(base_entry(parameter, tensor(values))), values)
    small = Parameter("p", (2,), "int32", "buffer")
    source = tensor(np.array([7, -3], np.int64))
    np.testing.assert_array_equal(collect(base_entry(small, source)), [7, -3])


def test_a_value_that_the_dtype_cannot_hold_names_the_tensor():
    values = np.array([1.0, 1e6], ml_dtypes.bfloat16)
    parameter = Parameter("layer.weight", (2,), "float16", "Linear")
    with pytest.raises(InputError, match=r"float16 cannot hold.*'layer\.weight'"):
        collect(base_entry(parameter, tensor(values)))


@pytest.mark.parametrize("target", ["float32", "float16"])
def test_a_float64_value_that_the_dtype_cannot_hold_is_refused_too(target):
    values = np.array([1.0, 1e300])
    parameter = Parameter("layer.weight", (2,), target, "Linear")
    with (
        np.errstate(over="ignore"),
        pytest.raises(InputError, match=r"cannot hold.*'layer\.weight'"),
    ):
        collect(base_entry(parameter, tensor(values)))


def test_zeros_for_what_only_adapters_have():
    entry = zero_entry(Parameter("head.weight", (3, 4), "float16", "Linear", transposed=True))
    found = collect(entry)
    assert found.shape == (4, 3)
    assert found.dtype == np.float16
    assert not found.any()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("base_is_stored", [False, True])
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 1e-7), ("float16", 3e-4), ("bfloat16", 3e-3)]
)
def test_merged_equals_numpy_in_float64(transposed, base_is_stored, dtype, bound):
    parameter = linear(dtype, transposed=transposed)
    held = W.astype(parameter.stored_dtype.numpy)
    expected = held.astype(np.float64) + (MERGED - W.astype(np.float64))
    base = np.ascontiguousarray(held.T) if transposed and base_is_stored else held
    entry = merged_entry(update(parameter), tensor(base), base_is_stored=base_is_stored)
    found = collect(entry)
    assert found.shape == parameter.stored_shape
    assert relative(found, expected.T if transposed else expected) < bound


def test_merging_rounds_once_from_float32():
    values = W.astype(np.float16)
    found = collect(merged_entry(update(linear("float16")), tensor(values), base_is_stored=False))
    exact = (values.astype(np.float64) + (MERGED - W)).astype(np.float16)
    # Rounding twice, or adding in float16, misses the nearest number about one time in ten.
    assert (found != exact).mean() < 0.01


def test_an_embedding_is_merged_in_its_own_layout():
    table = RANDOM.standard_normal((9, 4)).astype(np.float32)
    a = RANDOM.standard_normal((2, 9)).astype(np.float32)
    b = RANDOM.standard_normal((4, 2)).astype(np.float32)
    parameter = Parameter("e.weight", (9, 4), "float32", "Embedding")
    low_rank = LowRank("e", tensor(a), tensor(b), 3.0, embedding=True)
    found = collect(merged_entry(Update(parameter, low_rank), tensor(table), base_is_stored=False))
    expected = table.astype(np.float64) + 3.0 * (b.astype(np.float64) @ a).T
    assert relative(found, expected) < 1e-7


def test_a_saved_parameter_replaces_whatever_the_base_has():
    values = RANDOM.standard_normal((7, 17)).astype(np.float32)
    parameter = linear(transposed=True)
    entry = merged_entry(
        Update(parameter, saved=Saved("m.weight", tensor(values))), None, base_is_stored=True
    )
    assert entry.shape == (17, 7)  # another width than the parameter's
    np.testing.assert_array_equal(collect(entry), values.T)


def test_a_saved_parameter_is_cast_and_checked():
    parameter = Parameter("head.bias", (2,), "float16", "Linear")
    saved = Saved("head.bias", tensor(np.array([0.1, 2.0], np.float32)))
    found = collect(merged_entry(Update(parameter, saved=saved), None, base_is_stored=True))
    np.testing.assert_array_equal(found, np.array([0.1, 2.0], np.float16))
    for bad, error in ((1e6, InputError), (np.nan, AdapterError)):
        saved = Saved("head.bias", tensor(np.array([0.1, bad], np.float32)))
        with pytest.raises(error, match=r"head\.bias|'w'"):
            collect(merged_entry(Update(parameter, saved=saved), None, base_is_stored=True))


def test_a_merged_value_that_the_dtype_cannot_hold_is_refused():
    low_rank = LowRank("m", tensor(A * 1e4), tensor(B * 1e4), 1.0)
    with pytest.raises(InputError, match=r"float16 cannot hold.*'m\.weight'"):
        collect(
            merged_entry(
                Update(linear("float16"), low_rank),
                tensor(W.astype(np.float16)),
                base_is_stored=False,
            )
        )


def test_a_merged_value_that_overflows_float32_is_refused():
    low_rank = LowRank("m", tensor(np.full_like(A, 1e20)), tensor(np.full_like(B, 1e20)), 1.0)
    with np.errstate(over="ignore"), pytest.raises(InputError):
        collect(merged_entry(Update(linear(), low_rank), tensor(W), base_is_stored=False))


def test_an_update_of_what_the_base_lacks_is_an_error():
    with pytest.raises(InputError, match=r"no value for 'm\.weight'"):
        merged_entry(update(linear()), None, base_is_stored=False)


@given(
    block=st.integers(1, 3000),
    slab=st.integers(1, 2000),
    tile=st.integers(1, 40),
    transposed=st.booleans(),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_the_base_has_the_same_bytes_whatever_the_blocks(block, slab, tile, transposed, dtype):
    parameter = linear(dtype, transposed=transposed)
    values = W.astype(parameter.stored_dtype.numpy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BLOCK_BYTES", block)
        patch.setattr(rows, "_SLAB_BYTES", slab)
        patch.setattr(rows, "_TILE", tile)
        found = collect(base_entry(parameter, tensor(values)))
    expected = np.ascontiguousarray(values.T if transposed else values)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (100, 100), (999, 10), (10, 99999), (700, 800)])
def test_merged_values_are_right_whatever_the_blocks(transposed, sizes, small_blocks):
    small_blocks(*sizes)
    parameter = linear(transposed=transposed)
    found = collect(merged_entry(update(parameter), tensor(W), base_is_stored=False))
    assert relative(found, MERGED.T if transposed else MERGED) < 1e-7


def test_merging_from_the_export_gives_the_bytes_of_merging_from_the_checkpoint():
    parameter = linear(transposed=True)
    stored = tensor(collect(base_entry(parameter, tensor(W))))
    one = collect(merged_entry(update(parameter), stored, base_is_stored=True))
    other = collect(merged_entry(update(parameter), tensor(W), base_is_stored=False))
    assert one.tobytes() == other.tobytes()


def test_blocks_are_bounded(small_blocks):
    small_blocks(200, 400)
    for transposed in (False, True):
        entry = merged_entry(update(linear(transposed=transposed)), tensor(W), base_is_stored=False)
        sizes = [block.nbytes for block in entry.blocks()]
        assert len(sizes) > 3
        assert max(sizes) <= 400
