"""Integers that a base stores in the form of a quantized graph are written as they are."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.core.parameters import Parameter
from lora_export.core.quantization import Quantized
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.parameter_entries import carried_entries, entries_of
from lora_export.weights.quantization.packing import unpack_int4
from lora_export.weights.stream import Entry
from tests.helpers.hand_packed import pack_awq, pack_gptq
from tests.helpers.quantized_bases import expected_values, stored_parts, write_base

NAME = "up_proj.weight"
SHAPE = (40, 96)


def entries(folder, parts, quantized, *, shape=SHAPE, dtype="float16", transposed=True):
    stored = {f"up_proj.{key}": each for key, each in parts.items()}
    tensor = open_checkpoint(write_base(folder, stored)).tensors[NAME]
    parameter = Parameter(NAME, shape, dtype, "Linear", transposed, quantized=quantized)
    return carried_entries(parameter, tensor)


def unpacked(entry, quantized, shape):
    blocks = np.concatenate([np.asarray(each).reshape(-1) for each in entry.blocks()])
    assert blocks.nbytes == entry.nbytes
    if quantized.bits == 4:
        return unpack_int4(blocks, (shape[1], shape[0]))
    return blocks.view(np.int8).reshape(shape[1], shape[0])


def codes_of(parts, bits):
    """Return the codes of a GPTQ weight, ``[in, out]``, one bit at a time."""
    words = parts["qweight"].view(np.uint32)
    bit = [(words[at // 32] >> np.uint32(at % 32)) & 1 for at in range(32 * words.shape[0])]
    count = len(bit) // bits
    return np.array([sum(bit[bits * k + b] << b for b in range(bits)) for k in range(count)])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_integers_are_the_stored_ones_bit_for_bit(bits, dtype, tmp_path):
    parts, values = pack_gptq(*SHAPE, bits=bits, group_size=32, symmetric=True)
    quantized = Quantized(bits, 32, axis=0)
    integers, scales = entries(tmp_path, parts, quantized, dtype=dtype)
    q = unpacked(integers, quantized, SHAPE)
    assert np.array_equal(q, codes_of(parts, bits).astype(int) - (1 << (bits - 1)))
    (s,) = scales.blocks()
    assert s.dtype == np.dtype(dtype)
    assert np.array_equal(s, parts["scales"].astype(dtype))
    exact = (q * np.repeat(s.astype(np.float32), 32, 0)).T
    assert np.array_equal(exact.astype(np.float16), values)
    assert (integers.shape, scales.shape) == (
        ((SHAPE[0] * SHAPE[1] // 2,) if bits == 4 else SHAPE[::-1]), (3, 40)
    )  # fmt: skip


def test_one_group_of_eight_bits_is_one_scale_for_each_output(tmp_path):
    parts, values = pack_gptq(*SHAPE, bits=8, group_size=96, symmetric=True)
    quantized = Quantized(8, 0, axis=1)
    integers, scales = entries(tmp_path, parts, quantized)
    (s,) = scales.blocks()
    exact = unpacked(integers, quantized, SHAPE).T * s.astype(np.float32)[:, None]
    assert np.array_equal(exact.astype(np.float16), values)


@pytest.mark.parametrize(("name", "bits", "group"), [("int4-group", 4, 32), ("int8-packed", 8, 0)])
def test_those_of_compressed_tensors_too(name, bits, group, tmp_path):
    stored = stored_parts(f"{name}.weight")
    parts = {key.partition(".")[2]: each for key, each in stored.items()}
    quantized = Quantized(bits, group, axis=0 if group else 1)
    base = write_base(tmp_path, {f"up_proj.{k}": v for k, v in parts.items()}, dtype="bfloat16")
    parameter = Parameter(
        NAME, (44, 96), "bfloat16", "Linear", transposed=True, quantized=quantized
    )
    integers, scales = carried_entries(parameter, open_checkpoint(base).tensors[NAME])
    (s,) = scales.blocks()
    s = s.astype(np.float32)
    s = np.repeat(s, 32, 0).T if group else s[:, None]
    exact = unpacked(integers, quantized, (44, 96)).T * s
    expected = expected_values()[f"{name}.weight"]
    assert np.array_equal(exact.astype(expected.dtype), expected)


@pytest.mark.parametrize(
    ("settings", "quantized"),
    [
        ({"symmetric": False}, Quantized(4, 32, axis=0)),
        ({"symmetric": True, "act_order": True}, Quantized(4, 32, axis=0)),
        ({"symmetric": True}, Quantized(4, 16, axis=0)),
        ({"symmetric": True}, Quantized(8, 32, axis=0)),
        ({"symmetric": True}, Quantized(8, 0, axis=1)),
        ({"symmetric": True, "group_size": 96}, Quantized(8, 0, axis=1)),
        ({"symmetric": True}, None),
    ],
)
def test_other_forms_are_quantized_again(settings, quantized, tmp_path):
    parts, _ = pack_gptq(*SHAPE, **settings)
    assert entries(tmp_path, parts, quantized) is None


def test_awq_has_zero_points_that_a_graph_has_not(tmp_path):
    assert entries(tmp_path, pack_awq(*SHAPE)[0], Quantized(4, 32, axis=0)) is None


@pytest.mark.parametrize("pack", [pack_awq, pack_gptq])
def test_zero_points_are_written_where_the_graph_has_them(pack, tmp_path):
    parts, values = pack(*SHAPE)
    quantized = Quantized(4, 32, axis=0, zero_points=True)
    integers, scales, zeros = entries(tmp_path, parts, quantized)
    assert zeros.name == f"{NAME}.zero_point"
    (s,), z = scales.blocks(), unpacked_zeros(zeros)
    exact = (unpacked(integers, quantized, SHAPE) - np.repeat(z, 32, 0)) * np.repeat(s, 32, 0)
    assert np.array_equal(exact.T.astype(np.float16), values)
    assert z.any()


def unpacked_zeros(entry):
    (packed,) = entry.blocks()
    assert packed.nbytes == entry.nbytes
    return unpack_int4(packed, entry.graph_shape).astype(np.float32)


def test_a_weight_that_is_quantized_again_gets_zero_points_of_zero(tmp_path):
    quantized = Quantized(4, 32, axis=0, zero_points=True)
    parameter = Parameter(NAME, SHAPE, "float32", "Linear", transposed=True, quantized=quantized)
    whole = np.random.default_rng(0).standard_normal(SHAPE[::-1]).astype(np.float32)

    def value(wanted):
        return Entry(wanted.name, wanted.stored_dtype, SHAPE[::-1], lambda: iter([whole]))

    found = entries_of(parameter, value, method="search")
    assert [each.name for each in found] == [
        f"{NAME}.quantized", f"{NAME}.scale", f"{NAME}.zero_point",
    ]  # fmt: skip
    assert not unpacked_zeros(found[2]).any()
