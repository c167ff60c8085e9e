"""A change of a weight as a low-rank update: the best of its rank, and what it loses.

    ΔW = W − W0                        of a computed update, or of a weight that is carried whole
    B A = the r largest parts of ΔW's singular value decomposition (Eckart and Young)
    loss = ‖ΔW − B A‖ / ‖ΔW‖           Frobenius; 0 where ΔW = 0

One weight at a time is in memory, with its decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import LowRank, Saved
from lora_export.adapters.merging import truncated_svd
from lora_export.core.dtypes import DTYPES, to_float32
from lora_export.core.errors import InputError
from lora_export.core.tensors import MemoryTensor, read_all
from lora_export.weights.stream import merged_entry

if TYPE_CHECKING:
    from lora_export.adapters.resolve import Update
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.tensors import Tensor

__all__ = ["Approximation", "low_rank_of", "whole_value"]

_MATRIX: Final = 2
_NOISE: Final = 1e-7
"""‖ΔW‖ / ‖W0‖ up to which a weight is the base's own."""


@dataclass(frozen=True)
class Approximation:
    """A low-rank update in place of a change.

    Attributes:
        update: The update; None where nothing changes.
        loss: ‖ΔW − B A‖ / ‖ΔW‖.
    """

    update: LowRank | None
    loss: float


def low_rank_of(update: Update, base: Tensor, rank: int, module: str) -> Approximation:
    """Return the best low-rank update for what `update` does to a weight.

    Args:
        update: A change of a weight of at least two axes, in the checkpoint's layout.
        base: The base's value.
        rank: The largest rank.
        module: The module's path in the adapter.

    Raises:
        AdapterError: A tensor of the adapter holds NaN or infinity.
        InputError: ΔW is not finite.
    """
    parameter = update.parameter
    old = to_float32(read_all(base))
    delta = _new_value(update, base) - old
    embedding = parameter.module_type == "Embedding"
    turned = embedding or parameter.module_type == "Conv1D"
    matrix = delta.T if turned else delta.reshape(len(delta), -1)  # (out, in · kernel)
    size = float(np.linalg.norm(matrix))
    if not np.isfinite(size):
        msg = f"the change of {parameter.name!r} is not finite"
        raise InputError(msg, hint="The adapter or the base is damaged.")
    if size <= _NOISE * float(np.linalg.norm(old)):
        return Approximation(None, 0.0)
    a, b = truncated_svd(np.ascontiguousarray(matrix), rank)
    loss = float(np.linalg.norm(matrix - b @ a)) / size
    kernel = parameter.shape[_MATRIX:]
    a = a.reshape(len(a), *parameter.shape[1:]) if kernel else a
    b = b.reshape(*b.shape, *(1 for _ in kernel))
    name, float32 = parameter.name, DTYPES["float32"]
    low_rank = LowRank(
        module,
        MemoryTensor(f"{name}.A", float32, np.ascontiguousarray(a, np.float32)),
        MemoryTensor(f"{name}.B", float32, np.ascontiguousarray(b, np.float32)),
        1.0,
        embedding,
    )
    return Approximation(low_rank, loss)


def whole_value(update: Update, base: Tensor, parameter: str) -> Saved:
    """Return what a change makes of a bias or a norm, as a parameter that is carried whole."""
    values = np.ascontiguousarray(_new_value(update, base))
    return Saved(parameter, MemoryTensor(parameter, DTYPES["float32"], values), in_place=True)


def _new_value(update: Update, base: Tensor) -> Float32Array:
    """Return the new value in float32, in the checkpoint's layout."""
    wide = replace(update, parameter=replace(update.parameter, dtype="float32", transposed=False))
    blocks = [np.atleast_1d(b) for b in merged_entry(wide, base, base_is_stored=False).blocks()]
    return np.asarray(np.concatenate(blocks), np.float32).reshape(update.parameter.shape)
