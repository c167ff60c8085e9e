"""Survival in a weight, against a full singular value decomposition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_export.adapters.delta import Factors
from lora_export.verification.loss.layer_survival import LayerMeter, Pair


def quantize(weight: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Round to nearest with one scale per block of a row; zero blocks stay zero."""
    most = 2 ** (bits - 1) - 1
    blocks = weight.reshape(len(weight), -1, block)
    scale = np.abs(blocks).max(-1, keepdims=True) / most
    safe = np.where(scale > 0, scale, 1)
    rounded: np.ndarray = (np.round(blocks / safe) * scale).reshape(weight.shape)
    return rounded.astype(np.float32)


def measure(w0, left, right, quantized_base, quantized, *, step=7):
    meter = LayerMeter(left, right)
    merged = w0 + left @ right
    for start in range(0, len(w0), step):
        rows = slice(start, start + step)
        meter(
            start,
            Pair(w0[rows], quantized_base[rows]),
            Pair(merged[rows], quantized[rows]),
        )
    return meter.result()


def example(seed, rows, columns, rank, scale=0.05):
    random = np.random.default_rng(seed)
    w0 = random.standard_normal((rows, columns)).astype(np.float32)
    left = (scale * random.standard_normal((rows, rank))).astype(np.float32)
    right = random.standard_normal((rank, columns)).astype(np.float32)
    return w0, left, right


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1), st.integers(3, 24), st.integers(1, 3), st.integers(1, 6),
    st.sampled_from([4, 8]),
)  # fmt: skip
def test_against_a_full_decomposition(seed, rows, blocks, rank, bits):
    w0, left, right = example(seed, rows, 8 * blocks, rank)
    merged = w0 + left @ right
    q0, q = quantize(w0, bits, 8), quantize(merged, bits, 8)
    found = measure(w0, left, right, q0, q)
    wide = [each.astype(np.float64) for each in (w0, merged, q0, q)]
    u, sigma, v = np.linalg.svd(left.astype(np.float64) @ right)
    kept = int((sigma > 1e-7 * sigma[0]).sum())
    update, stored = (
        u[:, :kept].T @ each @ v[:kept].T for each in (wide[1] - wide[0], wide[3] - wide[2])
    )
    common, size = float((update * stored).sum()), float((update**2).sum())
    assert found.gain == pytest.approx(common / size, rel=1e-6, abs=1e-9)
    left_over = float((stored**2).sum())
    cosine = common / np.sqrt(left_over * size) if left_over else 0.0
    assert found.cosine == pytest.approx(cosine, rel=1e-6, abs=1e-9)
    error = np.linalg.norm(wide[3] - wide[1])
    assert found.error.relative_error == pytest.approx(error / np.linalg.norm(wide[1]))
    delta = np.linalg.norm(wide[1] - wide[0])
    assert found.error.error_over_delta == pytest.approx(error / delta)


def test_an_update_survives_an_error_many_times_its_size():
    """The figures of the design: error over ΔW about 10, and yet a gain of 1."""
    w0, left, right = example(0, 512, 512, 8)
    delta = left @ right
    left *= 0.01 * np.linalg.norm(w0) / np.linalg.norm(delta)
    found = measure(w0, left, right, quantize(w0, 4, 32), quantize(w0 + left @ right, 4, 32))
    assert found.error.error_over_delta is not None
    assert found.error.error_over_delta > 7
    assert found.gain == pytest.approx(1.0, abs=0.06)
    assert found.cosine is not None
    assert found.cosine > 0.97


def test_an_update_that_rounding_removes_has_gain_and_cosine_zero():
    w0, left, right = example(1, 16, 32, 2, scale=1e-4)
    w0 = quantize(w0, 4, 16)  # on the grid: rounding brings every entry back
    q0 = quantize(w0, 4, 16)
    found = measure(w0, left, right, q0, q0)
    assert (found.gain, found.cosine) == (0.0, 0.0)


def test_without_quantization_gain_and_cosine_are_one():
    w0, left, right = example(2, 20, 16, 3)
    found = measure(w0, left, right, w0, w0 + left @ right)
    assert found.gain == pytest.approx(1.0)
    assert found.cosine == pytest.approx(1.0)
    assert found.error.relative_error == 0.0


def test_a_zero_update_has_no_gain():
    w0, left, right = example(3, 8, 16, 2)
    found = measure(w0, np.zeros_like(left), right, w0, quantize(w0, 4, 16))
    assert found.gain is found.cosine is found.error.error_over_delta is None


def test_unused_ranks_do_not_add_directions():
    w0, left, right = example(4, 24, 32, 2)
    wide_left = np.concatenate([left, np.zeros((24, 6), np.float32)], axis=1)
    wide_right = np.concatenate([right, np.ones((6, 32), np.float32)])
    q0, q = quantize(w0, 4, 16), quantize(w0 + left @ right, 4, 16)
    one, other = (measure(w0, a, b, q0, q) for a, b in ((left, right), (wide_left, wide_right)))
    assert one.gain == pytest.approx(other.gain, rel=1e-6)
    assert one.cosine == pytest.approx(other.cosine, rel=1e-6)


def test_more_ranks_than_rows():
    w0, left, right = example(5, 4, 32, 9)
    found = measure(w0, left, right, w0, w0 + left @ right)
    assert found.gain == pytest.approx(1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["left", "quantized"])
def test_what_is_not_finite_has_no_gain(value, place):
    w0, left, right = example(6, 8, 16, 2)
    quantized = w0 + left @ right
    (left if place == "left" else quantized)[3, 1] = value
    found = measure(w0, left, right, w0, quantized)
    assert found.gain is found.cosine is None
    assert found.error.relative_error is None


def test_the_factors_of_a_merge_are_taken_as_they_are():
    w0, left, right = example(7, 12, 16, 2)
    meter = LayerMeter.of(Factors(left, right))
    meter(0, Pair(w0, w0), Pair(w0 + left @ right, w0 + left @ right))
    assert meter.result().gain == pytest.approx(1.0)
