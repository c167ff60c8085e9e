"""Blocks of weights quantized: brute force in float64, and the properties of each method."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lora_export.weights.quantization.blocks import dequantize, quantize_blocks
from lora_export.weights.quantization.methods import DEFAULT_METHOD, METHODS

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
RANGE = {4: (-8, 7), 8: (-127, 127)}
KINDS = ["gaussian", "heavy_tails", "one_outlier", "one_sided", "few_values"]


def drawn(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, columns))
    match kind:
        case "heavy_tails":
            values = random.standard_t(3, (rows, columns))
        case "one_outlier":
            values[0] *= 20
        case "one_sided":
            values = np.abs(values)
        case "few_values":
            values = random.integers(-3, 4, (rows, columns)) * 0.25
    return (values * 0.02).astype(np.float32)


def quantized(values, *, bits=4, block_size=32, method="search", scale_dtype=np.float16):
    return quantize_blocks(
        values, bits=bits, block_size=block_size, method=method, scale_dtype=scale_dtype
    )


def squared_errors(values: np.ndarray, q: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """‖w − q s‖² of each block in float64."""
    size = len(values) // max(len(scales), 1)
    kept = q.astype(np.float64) * np.repeat(scales.astype(np.float64), size, axis=0)
    return ((values.astype(np.float64) - kept) ** 2).reshape(-1, size, values.shape[1]).sum(1)


def least_errors(values: np.ndarray, size: int, bits: int) -> np.ndarray:
    """The least ‖w − q s‖² of each block over 500 scales, each improved to its integers' best."""
    lowest, highest = RANGE[bits]
    result = np.empty((len(values) // size, values.shape[1]))
    for (row, column), _ in np.ndenumerate(result):
        w = values[row * size : (row + 1) * size, column].astype(np.float64)
        grid = np.abs(w).max() / np.linspace(0.4 * highest, 2 * highest, 500)
        q = np.clip(np.round(w / grid[:, None]), lowest, highest)
        s = (q @ w) / np.maximum((q * q).sum(1), 1)
        result[row, column] = np.square(w - q * s[:, None]).sum(1).min()
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_size", [16, 32, 128, 256])
def test_the_search_comes_within_half_a_percent_of_the_best(kind, block_size) -> None:
    values = drawn(kind, 512, 8)
    least = least_errors(values, block_size, 4)
    least_signed = np.minimum(least, least_errors(-values, block_size, 4))
    for method, best in (("search", least), ("signed", least_signed)):
        q, scales = quantized(values, block_size=block_size, scale_dtype=np.float32, method=method)
        assert squared_errors(values, q, scales).sum() <= 1.005 * best.sum() + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_search_is_never_worse_than_nearest_in_any_block(kind, bits, dtype) -> None:
    values = drawn(kind, 256, 200)
    search = squared_errors(values, *quantized(values, bits=bits, scale_dtype=dtype))
    nearest = squared_errors(
        values, *quantized(values, bits=bits, scale_dtype=dtype, method="nearest")
    )
    assert (search <= nearest * (1 + 1e-5) + 1e-20).all()
    if kind in ("gaussian", "heavy_tails") and bits == 4:
        assert search.sum() < 0.85 * nearest.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_negative_scales_have_less_error_and_one_method_has_them(kind, dtype) -> None:
    values = drawn(kind, 256, 200)
    search, positive = quantized(values, scale_dtype=dtype)
    signed, either = quantized(values, scale_dtype=dtype, method="signed")
    assert (positive.astype(np.float32) > 0).all()
    assert kind == "few_values" or (either.astype(np.float32) < 0).any()
    less = squared_errors(values, signed, either).sum()
    more = squared_errors(values, search, positive).sum()
    assert less <= more * (1 + 1e-5) + 1e-20
    if kind == "gaussian":
        assert less < 0.92 * more
    assert [name for name, method in METHODS.items() if method.negative_scales] == ["signed"]
    one, same = (quantized(values, bits=8, method=name) for name in ("search", "signed"))
    assert one[0].tobytes() == same[0].tobytes()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearest_is_the_formula(bits, dtype) -> None:
    values = drawn("gaussian", 64, 50)
    q, scales = quantized(values, bits=bits, scale_dtype=dtype, method="nearest")
    blocks = values.reshape(2, 32, 50)
    wanted = (np.abs(blocks).max(1) / np.float32(RANGE[bits][1])).astype(dtype)
    assert scales.dtype == dtype
    assert scales.tobytes() == wanted.tobytes()
    exact = blocks.astype(np.float64) / wanted.astype(np.float64)[:, None]
    np.testing.assert_array_equal(q.reshape(blocks.shape), np.clip(np.round(exact), *RANGE[bits]))


MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 9)).map(lambda shape: (16 * shape[0], shape[1])),
    elements=st.floats(-(2.0**14), 2.0**14, width=32) | st.floats(-1, 1, width=32) | st.just(0.0),
)


@settings(max_examples=100)
@given(
    MATRICES,
    st.sampled_from([4, 8]),
    st.sampled_from(sorted(METHODS)),
    st.sampled_from(DTYPES),
)
def test_any_value_is_rounded_to_nearest_with_a_normal_scale(values, bits, method, dtype) -> None:
    q, scales = quantized(values, bits=bits, block_size=16, method=method, scale_dtype=dtype)
    lowest, highest = RANGE[bits]
    assert q.dtype == np.int8
    assert q.min() >= lowest
    assert q.max() <= highest
    wide = scales.astype(np.float32)
    assert np.isfinite(wide).all()
    magnitudes = np.abs(wide) if METHODS[method].negative_scales else wide
    assert (magnitudes >= float(ml_dtypes.finfo(dtype).smallest_normal)).all()
    wide = np.repeat(scales.astype(np.float64), 16, axis=0)
    exact = values.astype(np.float64) / wide
    inside = (exact >= lowest) & (exact <= highest)
    assert (np.abs(exact - q)[inside] <= 0.5 + 1e-6).all()
    assert (q[exact > highest] == highest).all()
    assert (q[exact < lowest] == lowest).all()
    np.testing.assert_array_equal(q[values == 0], 0)


@settings(max_examples=100)
@given(MATRICES, st.sampled_from([4, 8]), st.sampled_from(DTYPES))
def test_what_was_dequantized_is_quantized_to_the_same_values(values, bits, dtype) -> None:
    q, scales = quantized(values, bits=bits, block_size=16, method="nearest", scale_dtype=dtype)
    again, same = quantized(
        dequantize(q, scales, 16), bits=bits, block_size=16, method="nearest", scale_dtype=dtype
    )
    np.testing.assert_array_equal(again, q)
    used = q.reshape(-1, 16, q.shape[1]).any(1)
    relative = same.astype(np.float64)[used] / scales.astype(np.float64)[used]
    np.testing.assert_allclose(relative, 1, rtol=2e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_searching_again_changes_nothing(kind, dtype) -> None:
    values = dequantize(*quantized(drawn(kind, 256, 64), scale_dtype=dtype), 32)
    q, scales = quantized(values, scale_dtype=dtype)
    np.testing.assert_allclose(dequantize(q, scales, 32), values, rtol=1e-6)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pieces_of_whole_blocks_give_the_same_bits(method, dtype) -> None:
    values = drawn("gaussian", 32 * 40, 301)
    q, scales = quantized(values, method=method, scale_dtype=dtype)
    for rows, columns in [(slice(0, 32), slice(None)), (slice(64, 1280), slice(7, 8))]:
        part, part_scales = quantized(values[rows, columns], method=method, scale_dtype=dtype)
        assert part.tobytes() == q[rows, columns].tobytes()
        start, stop = (rows.start // 32, rows.stop // 32)
        assert part_scales.tobytes() == scales[start:stop, columns].tobytes()


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_and_tiny_values_have_normal_scales(method, bits, dtype) -> None:
    values = np.zeros((64, 4), np.float32)
    values[:, 1] = 1e-45
    values[:, 2] = ml_dtypes.finfo(dtype).smallest_normal / 3
    values[40, 3] = -1e-30
    q, scales = quantized(values, bits=bits, method=method, scale_dtype=dtype)
    assert (scales[:, 0] == 1).all()
    assert not q[:, 0].any()
    magnitudes = np.abs(scales.astype(np.float32))
    assert (magnitudes >= float(ml_dtypes.finfo(dtype).smallest_normal)).all()
    kept = dequantize(q, scales, 32)
    assert (np.abs(kept - values) <= np.repeat(magnitudes, 32, 0) / 2).all()


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [-1, 1])
def test_large_values_are_finite_or_refused(method, dtype, sign) -> None:
    largest = float(ml_dtypes.finfo(dtype).max)
    values = (np.random.default_rng(0).uniform(-1, 1, (64, 30)) * 0.87 * largest).astype(np.float32)
    values[0] = sign * 0.869 * largest
    for bits in (4, 8):
        q, scales = quantized(values, bits=bits, method=method, scale_dtype=dtype)
        product = q.astype(dtype).reshape(2, 32, 30) * scales[:, None]
        assert np.isfinite(product.astype(np.float32)).all()
    values[5, 3] = sign * largest
    with pytest.raises(OverflowError, match="reach to weights of"):
        quantized(values, method=method, scale_dtype=dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_values_that_are_not_finite_are_refused(bad, method) -> None:
    values = drawn("gaussian", 64, 33)
    values[63, 32] = bad
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantized(values, method=method)


def test_arguments_that_do_not_go_together_are_refused() -> None:
    values = np.ones((48, 2), np.float32)
    with pytest.raises(ValueError, match="48 rows are not a whole number of blocks of 32"):
        quantized(values)
    with pytest.raises(ValueError, match="blocks of 0"):
        quantized(values, block_size=0)
    with pytest.raises(ValueError, match="integers of 3 bits"):
        quantized(values, bits=3, block_size=16)
    with pytest.raises(ValueError, match="method 'best' is not among"):
        quantized(values, method="best", block_size=16)
    with pytest.raises(ValueError, match="scales in float64"):
        quantized(values, scale_dtype=np.float64, block_size=16)
    with pytest.raises(ValueError, match="float64 with 2 axes"):
        quantized(values.astype(np.float64), block_size=16)
    with pytest.raises(ValueError, match="float32 with 1 axes"):
        quantized(values[:, 0], block_size=16)
    with pytest.raises(ValueError, match="do not go with integers"):
        dequantize(np.zeros((48, 2), np.int8), np.ones((2, 2), np.float32), 32)


def test_other_layouts_and_nothing_at_all() -> None:
    values = drawn("gaussian", 64, 20)
    q, scales = quantized(values)
    for other in (np.asfortranarray(values), np.repeat(values, 2, axis=1)[:, ::2]):
        again, same = quantized(other)
        assert again.tobytes() == q.tobytes()
        assert same.tobytes() == scales.tobytes()
    for shape in ((0, 5), (64, 0)):
        empty, none = quantized(np.empty(shape, np.float32))
        assert empty.shape == shape
        assert none.shape == (shape[0] // 32, shape[1])
        assert dequantize(empty, none, 32).shape == shape


def test_the_default_is_a_method_and_each_knows_both_widths() -> None:
    assert DEFAULT_METHOD in METHODS
    for method in METHODS.values():
        assert set(method.candidates) == {4, 8}
        assert method.summary
