"""Rounding to NF4 and FP4: the nearest value of each block, and what a library stored stays."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.core.four_bit_floats import FLOAT4_VALUES, HALF_GAPS, float4_of
from lora_export.weights.quantization.float4_rounding import (
    pack_codes,
    quantize_float4,
    unpack_codes,
)
from tests.helpers.float4_bases import table_of

KINDS = ("nf4", "fp4")


@pytest.mark.parametrize("kind", KINDS)
def test_the_values_are_those_that_bitsandbytes_writes(kind):
    assert np.array_equal(np.array(FLOAT4_VALUES[kind], np.float32), table_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_each_code_is_the_nearest(kind):
    rows = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    codes, scales = quantize_float4(rows, kind, block_size=32, scale_dtype=np.float32)
    assert np.array_equal(scales, np.abs(rows.reshape(5, 3, 32)).max(-1))
    table = table_of(kind)
    exact = rows / np.repeat(scales, 32, 1)
    distance = np.abs(exact[..., None] - table)
    assert np.allclose(np.abs(table[codes] - exact), distance.min(-1), atol=1e-7)
    assert distance.min(-1).max() <= HALF_GAPS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_on_the_grid_stays(kind):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (4, 128)).astype(np.uint8)
    table = table_of(kind)
    codes[:, ::64] = int(np.argmax(table))  # a block's largest magnitude is its scale
    scales = rng.uniform(0.1, 1, (4, 2)).astype(np.float32)
    values = table[codes] * np.repeat(scales, 64, 1)
    found, own = quantize_float4(values, kind, block_size=64, scale_dtype=np.float32)
    assert np.array_equal(table[found], table[codes])
    assert np.array_equal(own, scales)


def test_a_block_of_zeros_has_a_scale_of_zero():
    zeros = np.zeros((2, 64), np.float32)
    codes, scales = quantize_float4(zeros, "nf4", block_size=64, scale_dtype=np.float16)
    assert not scales.any()
    assert (table_of("nf4")[codes] == 0).all()


def test_the_first_code_is_the_high_half():
    codes = np.arange(16, dtype=np.uint8)
    packed = pack_codes(codes)
    assert packed.tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]
    assert np.array_equal(unpack_codes(packed), codes)


def test_other_schemes_are_no_floats():
    assert [float4_of(each) for each in ("nf4", "fp4", "int4", "nf5")] == ["nf4", "fp4", None, None]
