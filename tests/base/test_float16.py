"""Halves by integer arithmetic: NumPy's own conversion is the oracle, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.base.float16 import all_finite, narrow, widen

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = EVERY[np.isfinite(EVERY)]


def by_numpy(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def test_every_half_is_widened_exactly() -> None:
    assert widen(FINITE).tobytes() == FINITE.astype(np.float32).tobytes()
    np.testing.assert_array_equal(widen(EVERY), EVERY.astype(np.float32))


def test_ties_and_their_neighbours_go_the_same_way() -> None:
    wide = np.sort(FINITE.astype(np.float64))
    ties = ((wide[1:] + wide[:-1]) / 2).astype(np.float32)
    for values in (ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, np.float32(-9e9))):
        assert narrow(values).tobytes() == by_numpy(values).tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_random_bits_are_narrowed_alike(seed) -> None:
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32)
    scales = 2.0 ** generator.integers(-30, 16, 1 << 18)
    near = (generator.standard_normal(1 << 18) * scales).astype(np.float32)
    for values in (bits.view(np.float32), near):
        whole = values[~np.isnan(values)]
        assert narrow(whole).tobytes() == by_numpy(whole).tobytes()
        small = whole[np.abs(whole) < 65536]
        assert narrow(small).tobytes() == by_numpy(small).tobytes()


@pytest.mark.parametrize("value", [65519.0, 65520.0, 65535.0, -65520.0, 1e9, np.inf, 0.0, -0.0])
def test_edges(value) -> None:
    values = np.full(3, value, np.float32)
    assert narrow(values).tobytes() == by_numpy(values).tobytes()


def test_shapes_and_strides_are_kept() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert narrow(values.T).tolist() == values.T.tolist()
    assert widen(narrow(values)[:, ::2]).tolist() == values[:, ::2].tolist()
    assert narrow(np.empty((0, 4), np.float32)).shape == (0, 4)
    assert widen(np.empty((0, 4), np.float16)).shape == (0, 4)
    assert narrow(np.float32(2).reshape(())).shape == ()


def test_all_finite_sees_infinity_and_nan_anywhere() -> None:
    values = np.zeros(200_000, np.float16)
    assert all_finite(values)
    for bad in (np.inf, -np.inf, np.nan):
        values[-1] = bad
        assert not all_finite(values)
