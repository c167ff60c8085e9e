"""Codes that a base stores in the form of ``MatMulBnb4`` are written as they are, or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.core.parameters import Parameter
from lora_export.core.quantization import Quantized
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.parameter_entries import carried_entries, count_carried
from lora_export.weights.quantized.carried_codes import reason_not_to_carry
from tests.helpers.float4_bases import float4_weight
from tests.helpers.quantized_bases import write_base

NAME = "up_proj.weight"


def opened(folder, weight):
    parts = {f"{NAME}{key}": each for key, each in weight.parts.items()}
    return open_checkpoint(write_base(folder, parts)).tensors[NAME]


def made(kind="nf4", shape=(40, 128), block=64, *, nested=False):
    return float4_weight(kind, shape, nested=nested, seed=3, block=block, dtype="bfloat16")


def asked(shape=(40, 128), block=64, floats="nf4"):
    quantized = Quantized(4, block, axis=1, floats=floats)
    return Parameter(NAME, shape, "float32", "Linear", quantized=quantized)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_and_scales_are_the_stored_ones(kind, nested, tmp_path):
    weight = made(kind, nested=nested)
    source, parameter = opened(tmp_path, weight), asked(floats=kind)
    codes, scales = carried_entries(parameter, source)
    assert np.array_equal(np.concatenate(list(codes.blocks())), weight.parts[""][:, 0])
    (found,) = scales.blocks()
    assert np.array_equal(found, weight.scales.reshape(40, 2))
    assert (codes.shape, scales.shape) == ((40 * 64,), (40, 2))
    assert count_carried([parameter], {NAME: source}) == 1


@pytest.mark.parametrize(
    ("weight", "parameter", "reason"),
    [
        (made("fp4"), asked(), "the base stores it as fp4"),
        (made(shape=(40, 96)), asked((40, 96), 32), "do not divide 96 inputs"),
        (made(block=512, shape=(4, 512)), asked((4, 512), 256), "in blocks of 512"),
        (made(block=32), asked(), ""),
    ],
)
def test_other_forms_are_not(weight, parameter, reason, tmp_path):
    source = opened(tmp_path, weight)
    found = reason_not_to_carry(source, "nf4")
    assert found.endswith(reason) if reason else not found
    assert carried_entries(parameter, source) is None


def test_codes_of_another_table_are_not(tmp_path):
    weight = made()
    weight.parts[".quant_map"] = weight.parts[".quant_map"][::-1].copy()
    assert "other values than those of nf4" in reason_not_to_carry(opened(tmp_path, weight), "nf4")
