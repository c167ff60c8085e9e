"""Halves by the processor's instructions and by integer arithmetic: NumPy is the oracle of both."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lora_export.core import halves
from lora_export.core.halves import BFLOAT16, FLOAT16, all_finite, measure, narrow, widen

EVERY = np.arange(1 << 16, dtype=np.uint16)
BUILT = halves.native is not None


@pytest.fixture(params=["instructions", "integers"], autouse=True)
def implementation(request, monkeypatch):
    """Run each test with the compiled module, where there is one, and without."""
    if request.param == "integers":
        monkeypatch.setattr(halves, "native", None)
    elif not BUILT:
        pytest.skip("lora_export.core._kernels was not built: no compiler, or another processor")
    return request.param


def by_numpy(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(dtype)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_every_half_is_widened_exactly(dtype) -> None:
    every = EVERY.view(dtype)
    finite = every[np.isfinite(every.astype(np.float32))]
    assert widen(finite).tobytes() == finite.astype(np.float32).tobytes()
    np.testing.assert_array_equal(widen(every), every.astype(np.float32))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_ties_and_their_neighbours_go_the_same_way(dtype) -> None:
    every = EVERY.view(dtype)
    wide = every.astype(np.float32)
    wide = np.sort(wide[np.isfinite(wide)].astype(np.float64))
    ties = ((wide[1:] + wide[:-1]) / 2).astype(np.float32)
    for values in (ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, np.float32(-9e9))):
        assert narrow(values, dtype).tobytes() == by_numpy(values, dtype).tobytes()


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_random_bits_are_narrowed_alike(seed, dtype) -> None:
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32)
    scales = 2.0 ** generator.integers(-30, 16, 1 << 18)
    near = (generator.standard_normal(1 << 18) * scales).astype(np.float32)
    for values in (bits.view(np.float32), near):
        whole = values[~np.isnan(values)]
        assert narrow(whole, dtype).tobytes() == by_numpy(whole, dtype).tobytes()
        small = whole[np.abs(whole) < 65536]
        assert narrow(small, dtype).tobytes() == by_numpy(small, dtype).tobytes()


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize(
    "value", [65519.0, 65520.0, 65535.0, -65520.0, 1e9, 3.4e38, np.inf, 0.0, -0.0]
)
def test_edges(value, dtype) -> None:
    values = np.full(3, value, np.float32)
    assert narrow(values, dtype).tobytes() == by_numpy(values, dtype).tobytes()


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_nan_stays_nan(dtype) -> None:
    bits = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001], np.uint32)
    assert np.isnan(narrow(bits.view(np.float32), dtype).astype(np.float32)).all()


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_shapes_and_strides_are_kept(dtype) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert narrow(values.T, dtype).tolist() == values.T.tolist()
    assert widen(narrow(values, dtype)[:, ::2]).tolist() == values[:, ::2].tolist()
    assert narrow(np.empty((0, 4), np.float32), dtype).shape == (0, 4)
    assert widen(np.empty((0, 4), dtype)).shape == (0, 4)
    assert narrow(np.float32(2).reshape(()), dtype).shape == ()


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, np.dtype(np.float32)], ids=str)
def test_all_finite_sees_infinity_and_nan_anywhere(dtype) -> None:
    values = np.zeros(200_003, dtype)
    values[7] = ml_dtypes.finfo(dtype).max
    assert all_finite(values)
    for place in (0, 100_000, -1):
        for bad in (np.inf, -np.inf, np.nan):
            values[place] = bad
            assert not all_finite(values)
            values[place] = 0
    assert all_finite(np.empty(0, dtype))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 2047, 2048, 2053, 200_001])
def test_what_is_measured_is_float64s(dtype, count) -> None:
    generator = np.random.default_rng(count)
    before = (generator.standard_normal(count) * 0.02).astype(dtype).astype(np.float32)
    merged = before + (generator.standard_normal(count) * 1e-4).astype(np.float32)
    stored = merged.astype(dtype)
    error, delta, unmoved = measure(before, merged, stored)
    wide = [each.astype(np.float64) for each in (before, merged, stored)]
    assert error == pytest.approx(float(((wide[2] - wide[1]) ** 2).sum()), rel=1e-5)
    assert delta == pytest.approx(float(((wide[1] - wide[0]) ** 2).sum()), rel=1e-5)
    assert unmoved == int((wide[2] == wide[0]).sum())


def test_buffers_that_do_not_go_together_are_refused(implementation) -> None:
    if implementation == "integers":
        return
    with pytest.raises(ValueError, match="do not go with"):
        halves.native.widen_f16(np.zeros(4, np.float16), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="do not go with"):
        halves.native.narrow_f16(np.zeros(3, np.float32), np.zeros(4, np.uint16))
    with pytest.raises(ValueError, match="do not go with"):
        halves.native.measure_f16(
            np.zeros(4, np.float32), np.zeros(3, np.float32), np.zeros(4, np.uint16)
        )
