"""One scale for a column: two passes by the caller give what blocks of the whole height give."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lora_export.weights.quantization.blocks import dequantize, quantize_blocks
from lora_export.weights.quantization.channels import channel_scales, quantize_channels

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


def drawn(rows: int = 96, columns: int = 50) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((rows, columns)) * 0.03
    values[:, 3] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_pieces_of_rows_give_what_one_block_gives(bits, dtype) -> None:
    values = drawn()
    scales = channel_scales(np.abs(values).max(0), bits=bits, scale_dtype=dtype)
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
    with pytest.raises(ValueError, match="negative or not a number"):
        channel_scales(np.array([1, np.nan], np.float32), bits=8, scale_dtype=np.float32)
    with pytest.raises(ValueError, match="negative or not a number"):
        channel_scales(np.array([1, -1], np.float32), bits=8, scale_dtype=np.float32)
    with pytest.raises(OverflowError, match="float16 reach"):
        channel_scales(np.array([1, 65504], np.float32), bits=8, scale_dtype=np.float16)
    scales = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantize_channels(np.array([[1, np.nan]], np.float32), scales, bits=8)
    with pytest.raises(ValueError, match="do not go with"):
        quantize_channels(np.ones((2, 3), np.float32), scales, bits=8)


def test_nothing_at_all() -> None:
    none = channel_scales(np.empty(0, np.float32), bits=8, scale_dtype=np.float16)
    assert none.dtype == np.float16
    assert quantize_channels(np.empty((4, 0), np.float32), none, bits=8).shape == (4, 0)


def test_a_larger_value_than_the_maximum_is_clipped() -> None:
    scales = channel_scales(np.array([1], np.float32), bits=8, scale_dtype=np.float32)
    q = quantize_channels(np.array([[3e38], [-3e38], [0.5]], np.float32), scales, bits=8)
    assert q.ravel().tolist() == [127, -127, 64]
