"""The delta maths: ``W = W0 + s·B A`` in float32, row block by row block.

A weight is a matrix in one of three layouts, and so is its update (LoRA, arXiv 2106.09685, section
4.1: ``W0 x + s·B A x``, with ``A [r, in]`` and ``B [out, r]``):

    1. ``[out, in]`` (Linear in a checkpoint):           left = B     right = A
    2. ``[in, out]`` (Conv1D, or a Linear transposed):   left = Aᵀ    right = Bᵀ
    3. ``[vocabulary, width]`` (Embedding):              left = Aᵀ    right = Bᵀ

In each, rows ``i:j`` of the update are ``left[i:j] @ right``: any block of rows is computed from
the block alone. s is folded into `left`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lora_export.base.dtypes import Float32Array, to_float32
from lora_export.base.errors import AdapterError
from lora_export.base.tensors import iter_blocks, read_all

if TYPE_CHECKING:
    from lora_export.adapters.canonical import Adapter, LowRank
    from lora_export.base.parameters import Parameter
    from lora_export.base.tensors import Tensor

__all__ = ["Factors", "factors_of", "not_finite", "read_finite", "require_finite_tensors"]


@dataclass(frozen=True)
class Factors:
    """An update as two float32 matrices: left ``[rows, r]`` (s folded in), right ``[r, cols]``."""

    left: Float32Array = field(repr=False)
    right: Float32Array = field(repr=False)

    def add_to(self, rows: Float32Array, start: int) -> Float32Array:
        """Return ``rows + left[start:start + n] @ right`` for the ``n`` given rows."""
        delta = self.left[start : start + len(rows)] @ self.right  # (n, r) @ (r, cols)
        delta += rows
        return delta


def factors_of(update: LowRank, parameter: Parameter, *, transposed: bool) -> Factors:
    """Return the factors of `update` for the layout that the weight is held in.

    Args:
        update: The low-rank update.
        parameter: The parameter it belongs to.
        transposed: Whether the rows that will be given are those of the transposed weight.

    Raises:
        AdapterError: A factor holds NaN or infinity.
    """
    a = read_finite(update.a)  # (r, in)
    b = read_finite(update.b)  # (out, r)
    input_first = update.embedding or parameter.module_type == "Conv1D"
    left, right = (a.T, b.T) if input_first != transposed else (b, a)
    scaled = np.ascontiguousarray(left) * np.float32(update.scale)
    return Factors(scaled, np.ascontiguousarray(right))


def read_finite(tensor: Tensor) -> Float32Array:
    """Return an adapter's tensor in float32.

    Raises:
        AdapterError: It holds NaN or infinity.
    """
    values = to_float32(read_all(tensor))
    if not bool(np.isfinite(values).all()):
        raise not_finite(tensor)
    return values


def require_finite_tensors(adapter: Adapter) -> None:
    """Require that no tensor of `adapter` holds NaN or infinity, reading it in blocks.

    Raises:
        AdapterError: One does.
    """
    factors = [factor for update in adapter.low_rank for factor in (update.a, update.b)]
    for tensor in (*factors, *(saved.tensor for saved in adapter.saved)):
        for block in iter_blocks(tensor):
            if not bool(np.isfinite(np.frombuffer(block, tensor.dtype.numpy)).all()):
                raise not_finite(tensor)


def not_finite(tensor: Tensor) -> AdapterError:
    """Return the error for an adapter's tensor that holds NaN or infinity."""
    msg = f"tensor {tensor.name!r} of the adapter holds NaN or infinity"
    return AdapterError(msg, hint="Its training diverged, or the file is damaged.")
