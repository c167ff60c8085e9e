"""The delta maths: ``W = W0 + s·B A`` in float32, row block by row block.

A weight is a matrix in one of three layouts, and so is its update (LoRA, arXiv 2106.09685, section
4.1: ``W0 x + s·B A x``, with ``A [r, in]`` and ``B [out, r]``):

    1. ``[out, in]`` (Linear in a checkpoint):           left = B     right = A
    2. ``[in, out]`` (Conv1D, or a Linear transposed):   left = Aᵀ    right = Bᵀ
    3. ``[vocabulary, width]`` (Embedding):              left = Aᵀ    right = Bᵀ

In each, rows ``i:j`` of the update are ``left[i:j] @ right``: any block of rows is computed from
the block alone. s is folded into `left`. Where DoRA measures columns, the weight is read twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from lora_export.adapters.experts import expert_factors
from lora_export.adapters.product import thin_product
from lora_export.core.dtypes import Float32Array, to_float32
from lora_export.core.errors import AdapterError
from lora_export.core.tensors import iter_blocks, read_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from lora_export.adapters.canonical import Adapter, LowRank
    from lora_export.adapters.experts import ExpertFactors
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = ["Factors", "factors_of", "not_finite_error", "read_finite", "require_finite_tensors"]


@dataclass(frozen=True)
class Factors:
    """An update as two float32 matrices: left ``[rows, r]`` (s folded in), right ``[r, cols]``.

    Attributes:
        left: ``[rows, r]``.
        right: ``[r, cols]``; the axes of a convolution's kernel are flattened into cols.
        magnitude: DoRA's m, one number per output, or None.
        outputs_first: Whether a row of the weight is an output; else a column is.
        norms: Where a column is an output: the lengths of the columns of ``W0 + s·B A``.
    """

    left: Float32Array = field(repr=False)
    right: Float32Array = field(repr=False)
    magnitude: Float32Array | None = field(default=None, repr=False)
    outputs_first: bool = True
    norms: Float32Array | None = field(default=None, repr=False)

    @property
    def needs_norms(self) -> bool:
        """Whether the whole weight has to be seen (`with_norms`) before its rows are scaled."""
        return self.magnitude is not None and not self.outputs_first and self.norms is None

    def with_norms(self, blocks: Iterable[tuple[Float32Array, int]]) -> Factors:
        """Return the factors with the columns' lengths, from all blocks of ``(rows, start)``."""
        return replace(self, norms=self.lengths(blocks).astype(np.float32))

    def lengths(self, blocks: Iterable[tuple[Float32Array, int]]) -> npt.NDArray[np.float64]:
        """Return ``‖W0 + s·B A‖`` of each output, from all blocks of ``(rows, start)``."""
        rows_are_outputs = self.outputs_first
        squares = np.zeros(len(self.left) if rows_are_outputs else self.right.shape[1])
        for rows, start in blocks:
            merged = self._sum(rows, start)
            if rows_are_outputs:
                found = np.einsum("ij,ij->i", merged, merged, dtype=np.float64)
                squares[start : start + len(rows)] = found
            else:
                squares += np.einsum("ij,ij->j", merged, merged, dtype=np.float64)
        return np.sqrt(squares)

    def apply(self, rows: Float32Array, start: int) -> Float32Array:
        """Return rows ``start:start + n`` of the merged weight for those of ``W0``.

        ``W0 + s·B A``, and with DoRA ``m · (W0 + s·B A) / ‖W0 + s·B A‖``, the length taken per
        output (arXiv 2402.09353, equation 5).
        """
        merged = self._sum(rows, start)
        if self.magnitude is not None and self.outputs_first:
            lengths = np.sqrt(np.einsum("ij,ij->i", merged, merged, dtype=np.float64))
            part = self.magnitude[start : start + len(rows)]
            merged *= (part / lengths).astype(np.float32)[:, None]
        elif self.magnitude is not None:
            assert self.norms is not None  # noqa: S101  (see needs_norms)
            merged *= self.magnitude / self.norms
        return merged.reshape(rows.shape)

    def _sum(self, rows: Float32Array, start: int) -> Float32Array:
        """Return ``rows + left[start:start + n] @ right``, as a matrix."""
        merged = thin_product(self.left[start : start + len(rows)], self.right)
        merged += rows.reshape(merged.shape)
        return merged


def factors_of(
    update: LowRank, parameter: Parameter, *, transposed: bool
) -> Factors | ExpertFactors:
    """Return the factors of `update` for the layout that the weight is held in.

    Args:
        update: The low-rank update.
        parameter: The parameter it belongs to.
        transposed: Whether the rows that will be given are those of the transposed weight.

    Raises:
        AdapterError: A factor holds NaN or infinity.
    """
    a = read_finite(update.a)
    b = read_finite(update.b)
    if update.experts > 1:
        return expert_factors(a, b, update, input_first=update.input_first(parameter))
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)  # (r, in · kernel), (out, r)
    outputs_first = update.input_first(parameter) == transposed
    left, right = (b, a) if outputs_first else (a.T, b.T)
    scaled = np.ascontiguousarray(left) * np.float32(update.scale)
    magnitude = None if update.magnitude is None else read_finite(update.magnitude).reshape(-1)
    return Factors(scaled, np.ascontiguousarray(right), magnitude, outputs_first)


def read_finite(tensor: Tensor) -> Float32Array:
    """Return an adapter's tensor in float32.

    Raises:
        AdapterError: It holds NaN or infinity.
    """
    values = to_float32(read_all(tensor))
    if not bool(np.isfinite(values).all()):
        raise not_finite_error(tensor)
    return values


def require_finite_tensors(adapter: Adapter) -> None:
    """Require that no tensor of `adapter` holds NaN or infinity, reading it in blocks.

    Raises:
        AdapterError: One does.
    """
    for tensor in adapter.tensors:
        for block in iter_blocks(tensor):
            if not bool(np.isfinite(np.frombuffer(block, tensor.dtype.numpy)).all()):
                raise not_finite_error(tensor)


def not_finite_error(tensor: Tensor) -> AdapterError:
    """Return the error for an adapter's tensor that holds NaN or infinity."""
    msg = f"tensor {tensor.name!r} of the adapter holds NaN or infinity"
    return AdapterError(msg, hint="Its training diverged, or the file is damaged.")
