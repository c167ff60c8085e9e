"""Conversions against ml_dtypes and float64, and what does not fit refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lora_export.core.dtypes import DTYPES, by_name, cast, to_float32
from lora_export.core.errors import InputError, UnsupportedError

FLOAT16, BFLOAT16 = DTYPES["float16"], DTYPES["bfloat16"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("float16", "float16"),
        ("fp16", "float16"),
        ("half", "float16"),
        ("bf16", "bfloat16"),
        ("fp32", "float32"),
        ("torch.bfloat16", "bfloat16"),
        ("torch.float32", "float32"),
        ("int64", "int64"),
    ],
)
def test_names(name, expected):
    assert by_name(name) is DTYPES[expected]


@pytest.mark.parametrize("name", ["float7", "", "torch.", "FLOAT16", "torch.torch.float16"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UnsupportedError, match="unknown dtype") as caught:
        by_name(name)
    assert "bfloat16" in (caught.value.hint or "")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("row", DTYPES.values(), ids=DTYPES)
def test_the_table_agrees_with_onnx(row):
    assert onnx.helper.tensor_dtype_to_np_dtype(row.onnx) == row.numpy
    assert row.itemsize_bytes == row.numpy.itemsize


def test_every_bfloat16_becomes_the_same_float32():
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(ml_dtypes.bfloat16)
    expected = values.astype(np.float32)
    found = to_float32(values)
    assert found.dtype == np.float32
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    assert same.all()
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def test_every_float16_becomes_the_same_float32():
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):  # half of these are not numbers
        expected = values.astype(np.float64)
        found = to_float32(values).astype(np.float64)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("row", [FLOAT16, BFLOAT16], ids=lambda row: row.name)
def test_every_stored_value_survives_the_round_trip(row):
    values = np.arange(2**16, dtype=np.uint16).view(row.numpy)
    finite = values[np.isfinite(values.astype(np.float32))]
    back = cast(to_float32(finite), row, name="x")
    assert back.dtype == row.numpy
    assert back.tobytes() == finite.tobytes()


FLOATS = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=2, max_side=5),
    elements=st.floats(-60000, 60000, width=32),
)


@given(FLOATS)
def test_rounding_is_to_the_nearest(values):
    for row, bits in ((FLOAT16, 11), (BFLOAT16, 8)):
        stored = cast(values, row, name="x").astype(np.float64)
        wide = values.astype(np.float64)
        # Half a unit in the last place of a number with `bits` significant ones; subnormals of
        # float16 are 2^-24 apart.
        step = np.maximum(2.0 ** (np.floor(np.log2(np.abs(wide) + 1e-300)) + 1 - bits), 2.0**-24)
        step = step if row is FLOAT16 else 2.0 ** (np.floor(np.log2(np.abs(wide) + 1e-300)) - 7)
        tiny = (np.abs(wide) < 2.0**-126) & (row is BFLOAT16)
        assert (np.abs(stored - wide) <= np.where(tiny, 2.0**-133, step / 2)).all()


def test_ties_go_to_even():
    halves = np.array([2049.0, 2051.0], np.float32)  # float16 is 2 apart here
    np.testing.assert_array_equal(cast(halves, FLOAT16, name="x"), [2048.0, 2052.0])


def test_float32_is_returned_as_it_is():
    values = np.array([1e38, -1e-38], np.float32)
    assert cast(values, DTYPES["float32"], name="x") is values
    assert to_float32(values) is values


@pytest.mark.parametrize(
    ("row", "value"), [(FLOAT16, 65520.0), (FLOAT16, -7e4), (BFLOAT16, 3.4028e38)]
)
def test_an_overflow_is_refused_by_name_and_value(row, value):
    values = np.array([1.0, value, 2.0], np.float32)
    with pytest.raises(InputError, match=r"1 value\(s\) of tensor 'layer\.weight'") as caught:
        cast(values, row, name="layer.weight")
    assert row.name in caught.value.message
    assert f"{abs(float(np.float32(value))):.6g}" in caught.value.message
    assert "--dtype" in (caught.value.hint or "")


def test_the_largest_float16_and_what_rounds_to_it_are_held():
    stored = cast(np.array([65504.0, 65519.0, -65519.0], np.float32), FLOAT16, name="x")
    np.testing.assert_array_equal(stored.astype(np.float32), [65504.0, 65504.0, -65504.0])


def test_an_infinity_that_was_there_is_no_overflow():
    stored = cast(np.array([np.inf, -np.inf, np.nan], np.float32), FLOAT16, name="x")
    assert np.isposinf(stored[0])
    assert np.isneginf(stored[1])
    assert np.isnan(stored[2])
