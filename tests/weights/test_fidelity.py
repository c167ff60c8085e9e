"""The share of a delta that rounding leaves: the meter against its definition in float64."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_export.adapters.canonical import LowRank
from lora_export.adapters.resolve import Update
from lora_export.core.dtypes import DTYPES, by_name
from lora_export.core.parameters import Parameter
from lora_export.core.tensors import MemoryTensor
from lora_export.weights.fidelity import (
    LOSSY_RELATIVE_ERROR,
    Fidelity,
    FidelityMeter,
    is_lossy,
    overall,
)
from lora_export.weights.stream import merged_entry

NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def measured(
    dtype: str, strength: float, *, kind: str = "Linear", block_bytes: int = 100, seed: int = 0
) -> tuple[Fidelity, np.ndarray, np.ndarray, np.ndarray]:
    """Merge a random update; return what the meter saw, W0, W and the delta in float64."""
    random = np.random.default_rng(seed)
    shape = {"Linear": (13, 9), "Conv1D": (9, 13), "Embedding": (9, 13)}[kind]
    stored = random.standard_normal(shape).astype(NUMPY[dtype])
    a = (random.standard_normal((3, 9)) * strength).astype(np.float32)
    b = random.standard_normal((13, 3)).astype(np.float32)
    f32 = DTYPES["float32"]
    update = LowRank(
        "m", MemoryTensor("a", f32, a), MemoryTensor("b", f32, b), 0.5, kind == "Embedding"
    )
    parameter = Parameter("m.weight", shape, dtype, kind)
    meter = FidelityMeter(parameter, update)
    entry = merged_entry(
        Update(parameter, low_rank=update),
        MemoryTensor("m.weight", by_name(dtype), stored),
        base_is_stored=False,
        block_bytes=block_bytes,
        observe=meter,
    )
    merged = np.concatenate([np.array(block) for block in entry.blocks()])
    delta = 0.5 * (b.astype(np.float64) @ a.astype(np.float64))
    return (
        meter.result(),
        stored.astype(np.float64),
        merged.view(NUMPY[dtype]).astype(np.float64),
        delta if kind == "Linear" else delta.T,
    )


@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "Embedding"])
@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_error_and_unmoved_share_are_those_of_the_definition(
    dtype: str, strength: float, kind: str
) -> None:
    found, base, merged, delta = measured(dtype, strength, kind=kind)
    error = np.linalg.norm((merged - base) - delta) / np.linalg.norm(delta)
    # of narrow dtypes the delta is taken from float32: see the module
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    assert found.relative_error == pytest.approx(error, rel=tolerance, abs=1e-9)
    assert found.unmoved == np.count_nonzero(merged == base)
    assert found.entries == base.size
    assert found.unmoved_share == found.unmoved / base.size


@settings(max_examples=25)
@given(block_bytes=st.integers(1, 2000), seed=st.integers(0, 99))
def test_blocks_do_not_matter(block_bytes: int, seed: int) -> None:
    for dtype in ("float32", "bfloat16"):
        one, *_ = measured(dtype, 1e-3, block_bytes=block_bytes, seed=seed)
        other, *_ = measured(dtype, 1e-3, block_bytes=10**6, seed=seed)
        assert (one.unmoved, one.entries) == (other.unmoved, other.entries)
        assert one.relative_error == pytest.approx(other.relative_error, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "strength"), [("float32", 1e-12), ("float16", 1e-6), ("bfloat16", 1e-5)]
)
def test_delta_that_is_lost_says_so(dtype: str, strength: float) -> None:
    found, *_ = measured(dtype, strength)
    assert found.unmoved_share > 0.95
    assert found.relative_error > 0.9
    assert is_lossy(found, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_delta_of_zero_loses_nothing(dtype: str) -> None:
    found, *_ = measured(dtype, 0.0)
    assert found.relative_error == 0
    assert found.unmoved_share == 1
    assert not is_lossy(found, dtype)


def test_overall_is_that_of_all_entries() -> None:
    rows = [measured("float16", strength)[0] for strength in (1.0, 1e-3)]
    total = overall(rows)
    error = math.sqrt(sum(row.error_squared for row in rows))
    assert total.relative_error == pytest.approx(
        error / math.sqrt(sum(row.delta_squared for row in rows))
    )
    assert total.unmoved_share == sum(r.unmoved for r in rows) / sum(r.entries for r in rows)
    nothing = overall([])
    assert (nothing.relative_error, nothing.unmoved_share) == (0, 0)


@pytest.mark.parametrize("dtype", sorted(LOSSY_RELATIVE_ERROR))
def test_threshold(dtype: str) -> None:
    limit = LOSSY_RELATIVE_ERROR[dtype]

    def row(error: float) -> Any:
        return Fidelity(error**2, 1.0, 0, 1)

    assert is_lossy(row(limit * 1.01), dtype)
    assert not is_lossy(row(limit * 0.99), dtype)
