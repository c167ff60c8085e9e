"""The product of thin factors: right, and the same whatever the number of BLAS's threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_export.adapters.product import thin_product
from tests.helpers.measure import ROOT

HASHES = """
import hashlib, sys
import numpy as np
from lora_export.adapters.product import thin_product
random = np.random.default_rng(0)
for rows, rank, columns in ((768, 8, 768), (500, 64, 1000), (33, 300, 700), (900, 1, 900)):
    left = random.standard_normal((rows, rank)).astype(np.float32)
    right = random.standard_normal((rank, columns)).astype(np.float32)
    print(hashlib.sha256(thin_product(left, right).tobytes()).hexdigest())
    print(hashlib.sha256((left @ right).tobytes()).hexdigest(), file=sys.stderr)
"""


@given(
    sizes=st.tuples(st.integers(0, 300), st.integers(1, 40), st.integers(1, 300)),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_numpy_in_float64(sizes, seed):
    rows, rank, columns = sizes
    random = np.random.default_rng(seed)
    left = random.standard_normal((rows, rank)).astype(np.float32)
    right = random.standard_normal((rank, columns)).astype(np.float32)
    found = thin_product(left, right)
    assert found.dtype == np.float32
    exact = left.astype(np.float64) @ right
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6 * rank * 4)
    into = np.full((rows, columns + 1), np.nan, np.float32)
    assert np.array_equal(thin_product(left, right, into[:, :-1]), found)
    assert np.isnan(into[:, -1]).all()


@pytest.mark.parametrize("threads", [2, 3])
def test_the_bits_do_not_depend_on_the_number_of_threads(threads):
    def hashes(count: int) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", HASHES],
            env={**os.environ, "OPENBLAS_NUM_THREADS": str(count)},
            capture_output=True, text=True, cwd=ROOT, check=True,
        )  # fmt: skip
        return done.stdout.split()

    assert hashes(1) == hashes(threads)
