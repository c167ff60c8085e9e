"""One scale for a column: two passes by the caller give what blocks of the whole height give."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lora_export.core.compiled import kernels
from lora_export.weights.quantization import channels
from lora_export.weights.quantization.blocks import dequantize, quantize_blocks
from lora_export.weights.quantization.channels import (
    channel_scales,
    largest_magnitudes,
    quantize_channels,
)

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def implementation(request, monkeypatch) -> str:
    """Run each test with the compiled module, where there is one, and without."""
    if request.param == "numpy":
        monkeypatch.setattr(channels, "kernels", None)
    elif kernels is None:
        pytest.skip("lora_export.core._kernels was not built: no compiler, or another processor")
    return request.param


def drawn(rows: int = 96, columns: int = 50) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((rows, columns)) * 0.03
    values[:, 3] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_pieces_of_rows_give_what_one_block_gives(bits, dtype) -> None:
    values = drawn()
    scales = channel_scales(largest_magnitudes(values), bits=bits, scale_dtype=dtype)
    q = np.concatenate(
        [quantize_channels(values[part], scales, bits=bits) for part in (slice(7), slice(7, None))]
    )
    whole, same = quantize_blocks(
        values, bits=bits, block_size=96, method="nearest", scale_dtype=dtype
    )
    assert scales.dtype == dtype
    assert scales.tobytes() == same.tobytes()
    assert q.tobytes() == whole.tobytes()
    assert dequantize(q, scales, 0).tobytes() == dequantize(q, same, 96).tobytes()
    step = scales.astype(np.float32)
    assert (np.abs(dequantize(q, scales, 0) - values) <= step * 0.5001 + step / 2**8).all()


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="infinite or not a number"):
        channel_scales(np.array([1, np.inf], np.float32), bits=8, scale_dtype=np.float32)
    with pytest.raises(ValueError, match="infinite or not a number"):
        channel_scales(np.array([1, np.nan], np.float32), bits=8, scale_dtype=np.float32)
    with pytest.raises(ValueError, match="magnitude is -1"):
        channel_scales(np.array([1, -1], np.float32), bits=8, scale_dtype=np.float32)
    with pytest.raises(OverflowError, match="float16 reach"):
        channel_scales(np.array([1, 65504], np.float32), bits=8, scale_dtype=np.float16)
    scales = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantize_channels(np.array([[1, np.nan]], np.float32), scales, bits=8)
    with pytest.raises(ValueError, match="do not go with"):
        quantize_channels(np.ones((2, 3), np.float32), scales, bits=8)
    with pytest.raises(ValueError, match="in float64"):
        quantize_channels(np.ones((2, 2)), scales, bits=8)


def test_nothing_at_all() -> None:
    none = channel_scales(np.empty(0, np.float32), bits=8, scale_dtype=np.float16)
    assert none.dtype == np.float16
    assert quantize_channels(np.empty((4, 0), np.float32), none, bits=8).shape == (4, 0)


def test_a_larger_value_than_the_maximum_is_clipped() -> None:
    scales = channel_scales(np.array([1], np.float32), bits=8, scale_dtype=np.float32)
    q = quantize_channels(np.array([[3e38], [-3e38], [0.5]], np.float32), scales, bits=8)
    assert q.ravel().tolist() == [127, -127, 64]


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 50])
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_magnitudes_and_integers_of_any_layout(rows, columns) -> None:
    values = drawn(rows, columns + 4)[:, :columns]
    scales = channel_scales(np.abs(values).max(0), bits=8, scale_dtype=np.float32)
    exact = values.astype(np.float64) / scales.astype(np.float64)
    wanted = np.clip(np.round(exact), -127, 127)
    for same in (values, values.copy(), np.asfortranarray(values), np.repeat(values, 2, 1)[:, ::2]):
        np.testing.assert_array_equal(largest_magnitudes(same), np.abs(values).max(0))
        np.testing.assert_array_equal(quantize_channels(same, scales, bits=8), wanted)
    turned = quantize_channels(np.asfortranarray(values), scales, bits=8)
    assert turned.T.flags.c_contiguous


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (6, 8), (3, 12)])
def test_a_value_that_is_not_finite_is_found_anywhere(bad, place) -> None:
    values = drawn(7, 13)
    values[place] = bad
    for same in (values, np.asfortranarray(values)):
        assert not np.isfinite(largest_magnitudes(same)[place[1]])
        assert np.isfinite(np.delete(largest_magnitudes(same), place[1])).all()
        with pytest.raises(ValueError, match="infinite or not a number"):
            quantize_channels(same, np.ones(13, np.float32), bits=8)


def test_ties_go_to_even() -> None:
    values = np.arange(-130, 131, dtype=np.float32)[:, None] / 2
    q = quantize_channels(values, np.ones(1, np.float32), bits=8)
    np.testing.assert_array_equal(q, np.round(values))


def test_buffers_that_do_not_go_together_are_refused(implementation) -> None:
    if implementation == "numpy":
        return
    values, q = np.zeros((6, 4), np.float32), np.zeros((6, 4), np.int8)
    four, six = np.ones(4, np.float32), np.ones(6, np.float32)
    for found, size, by_rows in ((six, 4, False), (four, 4, True), (four, 5, False), (four, 0, 0)):
        with pytest.raises(ValueError, match="do not go with"):
            kernels.largest_magnitudes(values, found, size, by_rows)
        with pytest.raises(ValueError, match="do not go with"):
            kernels.quantize_channels(values, found, q, size, by_rows, -8, 7)
    with pytest.raises(ValueError, match="do not go with 20 integers"):
        kernels.quantize_channels(values, four, q[:5], 4, False, -8, 7)
