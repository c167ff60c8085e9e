"""The compiled module and NumPy give the same bits, whatever the values, threads and sizes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_export.core.compiled import kernels
from lora_export.weights.quantization import blocks
from lora_export.weights.quantization.methods import METHODS

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]

RULES = st.fixed_dictionaries(
    {
        "bits": st.sampled_from([4, 8]),
        "method": st.sampled_from(sorted(METHODS)),
        "dtype": st.sampled_from(DTYPES),
    }
)

pytestmark = pytest.mark.skipif(
    kernels is None,
    reason="lora_export.core._kernels was not built: no compiler, or another processor",
)


def widths() -> list[int]:
    """The registers of this processor, in numbers: 16 are AVX-512."""
    if kernels is None:
        return []
    empty = np.zeros((16, 1), np.float32), np.zeros((16, 1), np.int8), np.zeros((1, 1), np.float32)
    found = []
    for lanes in (8, 16):
        try:
            kernels.quantize_blocks(*empty, 16, 1, -8, 7, 1, 0, np.empty(0, np.float32), 0, lanes)
        except ValueError:
            continue
        found.append(lanes)
    return found


WIDTHS = widths()


def quantized(values, *, size=16, bits=4, method="search", dtype=DTYPES[0], lanes=0):
    """Blocks by the compiled module with registers of `lanes` numbers; by NumPy for None."""

    def quantize(*arguments):
        return kernels.quantize_blocks(*arguments, lanes)

    compiled = None if lanes is None else SimpleNamespace(quantize_blocks=quantize)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "kernels", compiled)
        return blocks.quantize_blocks(
            values, bits=bits, block_size=size, method=method, scale_dtype=dtype
        )


def same_bits(values, **how) -> None:
    q, scales = quantized(values, **how, lanes=None)
    for lanes in WIDTHS:
        other, others = quantized(values, **how, lanes=lanes)
        assert q.tobytes() == other.tobytes(), lanes
        assert scales.tobytes() == others.tobytes(), lanes


def drawn(shape: tuple[int, int], seed: int, spread: int) -> np.ndarray:
    """Numbers of very different sizes, some of them equal, some 0."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape) * 2.0 ** random.integers(-spread, 1, shape)
    values[random.random(shape) < 0.05] = 0
    return (np.round(values * 64) / 64 if seed % 5 == 0 else values).astype(np.float32)


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 16, 33, 256]), st.integers(1, 50)),
    spread=st.integers(0, 12),
    power=st.integers(-152, 11),
    rules=RULES,
)
def test_random_values(seed, shape, spread, power, rules) -> None:
    groups, size, columns = shape
    values = drawn((groups * size, columns), seed, spread) * np.float32(2.0**power)
    same_bits(values, size=size, **rules)


@settings(max_examples=60)
@given(
    st.lists(
        st.floats(-50000, 50000, width=32) | st.integers(-8, 8).map(float), min_size=64, max_size=64
    ),
    RULES,
)
def test_any_values(numbers, rules) -> None:
    same_bits(np.array(numbers, np.float32).reshape(32, 2), **rules)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_matrix_of_several_pieces(method, dtype) -> None:
    same_bits(drawn((32 * 9, 5003), 1, 3), size=32, method=method, dtype=dtype)
    same_bits(drawn((32 * 700, 3), 1, 3), size=32, method=method, dtype=dtype)


def test_largest_values_are_refused_alike() -> None:
    for value in (np.nan, np.inf, -np.inf, 60000.0, -3e38):
        values = np.full((32, 40), 0.5, np.float32)
        values[20, 33] = value
        texts = []
        for lanes in (*WIDTHS, None):
            with pytest.raises((ValueError, OverflowError)) as caught:
                quantized(values, dtype=DTYPES[1], lanes=lanes)
            texts.append(f"{caught.type}{caught.value}")
        assert len(set(texts)) == 1


def test_registers_that_no_processor_has() -> None:
    assert WIDTHS[0] == 8
    with pytest.raises(ValueError, match="no registers of 24 numbers"):
        quantized(np.ones((16, 2), np.float32), lanes=24)


def test_threads_do_not_meet() -> None:
    values = drawn((32 * 64, 512), 1, 2)
    q, scales = quantized(values, size=32)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda part: quantized(part, size=32), np.split(values, 8)))
    assert np.concatenate([part for part, _ in parts]).tobytes() == q.tobytes()
    assert np.concatenate([part for _, part in parts]).tobytes() == scales.tobytes()


def test_buffers_that_do_not_go_together_are_refused() -> None:
    values, q = np.zeros((32, 4), np.float32), np.zeros((32, 4), np.int8)
    scales, none = np.zeros((2, 4), np.float32), np.empty(0, np.float32)
    rules = (-8, 7, 2.0**-126, 0, none, 0)
    assert kernels.quantize_blocks(values, q, scales, 16, 4, *rules) == 0
    for bad in (
        (values[:31], q, scales, 16, 4, *rules),
        (values, q[:31], scales, 16, 4, *rules),
        (values, q, scales[:1], 16, 4, *rules),
        (values, q, scales, 15, 4, *rules),
        (values, q, scales, 0, 4, *rules),
        (values, q, scales, 16, -4, *rules),
        (values, q, scales, 2**62, 4, *rules),
        (values, q, scales, 16, 4, -8, 7, 2.0**-126, 3, none, 0),
        (values, q, scales, 16, 4, -8, 7, 2.0**-126, 1, none, 0),
    ):
        with pytest.raises(ValueError, match="do not go with"):
            kernels.quantize_blocks(*bad)
