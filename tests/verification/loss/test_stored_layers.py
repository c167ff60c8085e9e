"""Stored integers against float weights, in every layout; what is not their rounding is named."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from lora_export.core.dtypes import DTYPES
from lora_export.core.parameters import Parameter
from lora_export.core.quantization import Quantized
from lora_export.core.tensors import MemoryTensor, Tensor
from lora_export.verification.loss.stored_layers import StoredLayers, measure_layers, stored_value
from lora_export.weights.quantization.blocks import quantize_blocks
from lora_export.weights.quantization.channels import channel_scales, quantize_channels
from lora_export.weights.quantization.packing import pack_int4

NAME = "layer.weight"
FORMS = {
    "int4": Quantized(4, 16, 0),
    "int8 in blocks": Quantized(8, 16, 0),
    "int8 by output": Quantized(8, 0, 1),
    "int8 by row": Quantized(8, 0, 0),
}


class Weights:
    """The weights of a reference, as arrays."""

    def __init__(self, base: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
        self.base, self.pair = base, (left, right)

    def value(self, name: str) -> np.ndarray:
        return self.base

    def merged(self, name: str) -> np.ndarray:
        total: np.ndarray = self.base + self.pair[0] @ self.pair[1]
        return total

    def factors(self, name: str) -> Any:
        return self.pair


def stored(weight: np.ndarray, form: Quantized, dtype: str = "float32") -> dict[str, Tensor]:
    """Return what a file holds of a weight in the graph's layout."""
    scales_as = DTYPES[dtype].numpy
    values = np.ascontiguousarray(weight, np.float32)
    if form.block_size:
        q, scales = quantize_blocks(
            values, bits=form.bits, block_size=form.block_size, method="search",
            scale_dtype=scales_as,
        )  # fmt: skip
    else:
        turned = values.T if form.axis == 0 else values
        scales = channel_scales(np.abs(turned).max(axis=0), bits=form.bits, scale_dtype=scales_as)
        q = quantize_channels(np.ascontiguousarray(turned), scales, bits=form.bits)
        q = np.ascontiguousarray(q.T if form.axis == 0 else q)
    packed = form.bits == 4
    integers = pack_int4(q) if packed else q
    return {
        f"{NAME}.quantized": MemoryTensor(
            f"{NAME}.quantized", DTYPES["uint8" if packed else "int8"], integers
        ),
        f"{NAME}.scale": MemoryTensor(f"{NAME}.scale", DTYPES[dtype], scales),
    }


def example(seed: int = 0, *, strength: float = 0.1) -> Weights:
    random = np.random.default_rng(seed)
    shapes = ((24, 32), (24, 2), (2, 32))
    base, left, right = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    return Weights(base, strength * left, right)


def measure(weights: Weights, base: Any, own: Any, form: Quantized, dtype: str) -> StoredLayers:
    """Measure a Linear, which the graph holds transposed."""
    parameter = Parameter(NAME, (24, 32), dtype, "Linear", transposed=True, quantized=form)
    return measure_layers([parameter], cast("Any", weights), base, own)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_integers_of_the_merged_weight_are_its_rounding(form: Quantized, dtype: str) -> None:
    weights = example()
    base, own = (stored(each.T, form, dtype) for each in (weights.base, weights.merged(NAME)))
    found = measure(weights, base, own, form, dtype)
    assert (found.link.verdict, found.link.compared) == ("pass", 1)
    assert found.link.steps == pytest.approx(0.5, abs=0.05)
    row = found.rows[NAME]
    assert row.gain == pytest.approx(1, abs=0.1)
    assert row.cosine is not None
    assert row.cosine > 0.95
    alone = measure(weights, base, None, form, dtype)
    assert alone.link.verdict == "pass"
    assert alone.rows[NAME].gain is None
    assert alone.rows[NAME].error_over_delta is not None


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_integers_of_the_base_in_place_of_the_merged_weight_are_named(form: Quantized) -> None:
    weights = example(strength=0.02)
    base = stored(weights.base.T, form)
    found = measure(weights, base, base, form, "float32")
    assert found.link.verdict == "fail"
    assert found.link.differing == [NAME]
    assert f"the integers of {NAME!r}" in found.link.reason


def test_one_integer_that_is_off_is_found() -> None:
    weights, form = example(1), FORMS["int8 by output"]
    base = stored(weights.base.T, form)
    values = base[f"{NAME}.quantized"].values.copy()  # type: ignore[attr-defined]
    values[3, 5] += 1 if values[3, 5] < 100 else -1
    changed = {
        **base, f"{NAME}.quantized": MemoryTensor(f"{NAME}.quantized", DTYPES["int8"], values)
    }  # fmt: skip
    found = measure(weights, changed, None, form, "float32")
    assert found.link.verdict == "fail"
    assert found.link.steps is not None
    assert 0.501 < found.link.steps < 1.6


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_weights_that_were_rounded_to_half_precision_before_are_told_from_others(
    form: Quantized,
) -> None:
    """`quantize` of a float16 export starts from what that holds."""
    weights = example(2)
    rounded = weights.base.astype(np.float16).astype(np.float32)
    found = measure(weights, stored(rounded.T, form, "float16"), None, form, "float16")
    assert found.link.verdict == "pass"
    other = weights.base * np.float32(1.01)
    found = measure(weights, stored(other.T, form, "float16"), None, form, "float16")
    assert found.link.verdict == "fail"


def test_a_weight_that_is_not_finite_is_named() -> None:
    weights, form = example(3), FORMS["int4"]
    base = stored(weights.base.T, form)
    weights.base[2, 2] = np.nan
    found = measure(weights, base, None, form, "float32")
    assert (found.link.verdict, found.link.steps) == ("fail", None)
    assert found.rows[NAME].relative_error is None


def test_stored_values_come_in_the_model_s_layout() -> None:
    weights, form = example(4), FORMS["int8 in blocks"]
    held = stored(weights.base.T, form)
    parameter = Parameter(NAME, (24, 32), "float32", "Linear", transposed=True, quantized=form)
    values = stored_value(parameter, held, (24, 32))
    assert values is not None
    np.testing.assert_allclose(values, weights.base, atol=0.05)
    assert stored_value(parameter, {}, (24, 32)) is None


def test_integers_that_may_be_rounded_up_or_down_are_neighbours_of_the_weight() -> None:
    weights, form = example(5), FORMS["int8 in blocks"]
    base = stored(weights.base.T, form)
    name = f"{NAME}.quantized"
    values = base[name].values.copy()  # type: ignore[attr-defined]
    scales = np.repeat(base[f"{NAME}.scale"].values, 16, axis=0)  # type: ignore[attr-defined]
    place = weights.base.T / scales
    other = np.where(values > place, np.floor(place), np.ceil(place))
    other = np.clip(other, -127, 127).astype(np.int8)
    parameter = Parameter(NAME, (24, 32), "float32", "Linear", transposed=True, quantized=form)

    def link(integers: np.ndarray, steps: float) -> tuple[str, float | None]:
        held = {**base, name: MemoryTensor(name, DTYPES["int8"], integers)}
        found = measure_layers(
            [parameter], cast("Any", weights), held, None, steps_of_blocks=steps
        ).link
        return found.verdict, found.tolerance

    assert link(other, 1.0) == ("pass", pytest.approx(1.001))
    assert link(other, 0.5) == ("fail", pytest.approx(0.501))
    other[3, 5] += 2 if other[3, 5] < 100 else -2
    assert link(other, 1.0)[0] == "fail"
