"""A weight with its update, and the values that its entry of a file yields."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lora_export.adapters.canonical import LowRank
from lora_export.adapters.resolve import Update
from lora_export.core.dtypes import DTYPES
from lora_export.core.parameters import Parameter
from lora_export.core.tensors import MemoryTensor

if TYPE_CHECKING:
    from lora_export.weights import stream


def tensor(values: np.ndarray, name: str = "w") -> MemoryTensor:
    by_numpy = {row.numpy: row for row in DTYPES.values()}
    return MemoryTensor(name, by_numpy[values.dtype], values)


def collect(entry: stream.Entry) -> np.ndarray:
    blocks = [np.array(block) for block in entry.blocks()]
    joined = np.concatenate([block.reshape(-1) for block in blocks])
    assert joined.dtype == entry.dtype.numpy
    assert joined.nbytes == entry.nbytes
    return joined.reshape(entry.shape)


RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((23, 17)).astype(np.float32)
A = RANDOM.standard_normal((5, 17)).astype(np.float32)
B = RANDOM.standard_normal((23, 5)).astype(np.float32)
SCALE = 1.75
MERGED = W.astype(np.float64) + SCALE * (B.astype(np.float64) @ A.astype(np.float64))


def update(parameter: Parameter) -> Update:
    return Update(parameter, LowRank("m", tensor(A, "A"), tensor(B, "B"), SCALE))


def linear(dtype: str = "float32", *, transposed: bool = False) -> Parameter:
    return Parameter("m.weight", W.shape, dtype, "Linear", transposed)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    wide = found.astype(np.float64)
    return float(np.linalg.norm(wide - expected) / np.linalg.norm(expected))
