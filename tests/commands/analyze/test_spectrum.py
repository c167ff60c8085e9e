"""Spectra, subspaces and amplification against NumPy on the product itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lora_export.adapters.canonical import LowRank
from lora_export.commands.analyze.amplification import amplification_of
from lora_export.commands.analyze.spectrum import spectrum_of
from lora_export.commands.analyze.subspace import similarity
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import AdapterError
from lora_export.core.tensors import MemoryTensor


def held(name: str, values: np.ndarray, dtype: str = "float32") -> MemoryTensor:
    return MemoryTensor(name, DTYPES[dtype], np.ascontiguousarray(values, DTYPES[dtype].numpy))


def update(a: np.ndarray, b: np.ndarray, scale: float = 1.0) -> LowRank:
    return LowRank("layer.0.query", held("a", a), held("b", b), scale)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize(("out", "width", "r"), [(40, 24, 4), (6, 30, 8), (30, 6, 8), (5, 5, 1)])
def test_the_decomposition_is_that_of_the_product(random, out, width, r) -> None:
    a, b = random.standard_normal((r, width)), random.standard_normal((out, r))
    given = update(a, b, scale=-2.5)
    delta = -2.5 * (b.astype(np.float32).astype(float) @ a.astype(np.float32).astype(float))
    found = spectrum_of(given)
    expected = np.linalg.svd(delta, compute_uv=False)[: len(found.values)]
    np.testing.assert_allclose(found.values, expected, rtol=1e-9, atol=1e-12)
    rebuilt = (found.left * found.values) @ found.right.T
    np.testing.assert_allclose(rebuilt, delta, atol=1e-9)
    assert found.norm == pytest.approx(np.linalg.norm(delta), rel=1e-9)
    assert found.shape == (out, width)


def test_effective_ranks_of_known_spectra() -> None:
    flat = spectrum_of(update(np.eye(4, 9), np.eye(7, 4), scale=3.0))
    assert flat.effective_rank == pytest.approx(4)
    assert flat.stable_rank == pytest.approx(4)
    assert (flat.rank_of_energy(0.5), flat.rank_of_energy(0.51), flat.rank_of_energy(1)) == (
        2,
        3,
        4,
    )
    peaked = spectrum_of(update(np.diag([1, 1e-6, 1e-6]), np.eye(3)))
    assert peaked.effective_rank == pytest.approx(1, abs=1e-3)
    assert peaked.rank_of_energy(0.999) == 1
    nothing = spectrum_of(update(np.ones((2, 5)), np.zeros((4, 2))))
    assert nothing.effective_rank == nothing.stable_rank == 0
    assert nothing.rank_of_energy(0.9) == 0


@pytest.mark.parametrize("matrix", ["A", "B"])
def test_similarity_is_equation_4(random, matrix) -> None:
    first = update(random.standard_normal((3, 20)), random.standard_normal((16, 3)))
    second = update(random.standard_normal((5, 20)), random.standard_normal((16, 5)))
    found = similarity(first, second, matrix)
    assert found.shape == (3, 5)

    def vectors(each: LowRank) -> np.ndarray:
        if matrix == "A":
            return np.linalg.svd(each.a.values.astype(float))[2].T
        return np.linalg.svd(each.b.values.astype(float))[0]

    for i in range(1, 4):
        for j in range(1, 6):
            overlap = vectors(first)[:, :i].T @ vectors(second)[:, :j]
            expected = np.linalg.norm(overlap) ** 2 / min(i, j)
            assert found[i - 1, j - 1] == pytest.approx(expected, rel=1e-6)


def test_a_subspace_lies_in_itself_and_not_beside(random) -> None:
    a, b = random.standard_normal((4, 20)), random.standard_normal((16, 4))
    same = similarity(update(a, b), update(a, b), "A")
    np.testing.assert_allclose(np.diag(same), 1)
    apart = similarity(update(np.eye(2, 8), b[:, :2]), update(np.eye(2, 8, 4), b[:, :2]), "A")
    np.testing.assert_allclose(apart, 0, atol=1e-12)
    with pytest.raises(AdapterError, match="20 wide in one adapter and 8 in the other"):
        similarity(update(a, b), update(np.eye(2, 8), b[:, :2]), "A")


@pytest.mark.parametrize("input_first", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_amplification_is_table_7(random, input_first, dtype) -> None:
    weight = held("w", random.standard_normal((48, 32)) * 0.1, dtype)
    values = weight.values.astype(np.float32).astype(float)
    given = update(random.standard_normal((3, 32)), random.standard_normal((48, 3)), scale=2.0)
    tensor = held("w", weight.values.T, dtype) if input_first else weight
    found = amplification_of(spectrum_of(given), tensor, input_first=input_first)
    delta = 2.0 * given.b.values.astype(float) @ given.a.values.astype(float)
    u, s, vh = np.linalg.svd(delta)
    projected = u[:, :3].T @ values @ vh[:3].T
    own = np.linalg.svd(values, compute_uv=False)[:3]
    assert found.rank == 3
    assert found.weight_norm == pytest.approx(np.linalg.norm(values))
    assert found.in_delta == pytest.approx(np.linalg.norm(projected), rel=1e-6)
    assert found.factor == pytest.approx(np.linalg.norm(s) / np.linalg.norm(projected), rel=1e-6)
    assert 0.97 * np.linalg.norm(own) < found.in_weight <= np.linalg.norm(own) * (1 + 1e-9)
    assert found.in_random == pytest.approx(3 * np.linalg.norm(values) / math.sqrt(48 * 32))


def test_random_directions_are_what_random_directions_give(random) -> None:
    values = random.standard_normal((40, 30))
    squares = []
    for _ in range(400):
        u = np.linalg.qr(random.standard_normal((40, 4)))[0]
        v = np.linalg.qr(random.standard_normal((30, 4)))[0]
        squares.append(np.linalg.norm(u.T @ values @ v) ** 2)
    given = update(random.standard_normal((4, 30)), random.standard_normal((40, 4)))
    found = amplification_of(spectrum_of(given), held("w", values), input_first=False)
    assert found.in_random == pytest.approx(math.sqrt(np.mean(squares)), rel=0.03)
