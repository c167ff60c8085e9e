"""Stacked experts: one low-rank update of a parameter ``[E, …, …]`` is E updates, one per matrix.

PEFT's ``target_parameters`` (``ParamWrapper``) stores A ``[E·r, in]`` and B ``[out, r·E]``. Of
expert e they hold ``Aₑ = A[e·r:(e + 1)·r]`` and ``Bₑ = B[:, e::E]``; its delta is ``s·Bₑ Aₑ``:

    1. ``[E, out, in]`` (most models):   Wₑ + s·Bₑ Aₑ
    2. ``[E, in, out]`` (GPT-OSS):       Wₑ + (s·Bₑ Aₑ)ᵀ

Blocks are rows of the E matrices one below the other, ``[E·rows, columns]``.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.adapters.product import thin_product
from lora_export.core.tensors import bytes_of, read_all

if TYPE_CHECKING:
    from lora_export.adapters.canonical import LowRank
    from lora_export.core.dtypes import DType, Float32Array
    from lora_export.core.tensors import Tensor

__all__ = ["ExpertColumns", "ExpertFactors", "ExpertRows", "Recent", "expert_factors"]

_RECENT: Final = 4


@dataclass(frozen=True)
class ExpertFactors:
    """The updates of E matrices of one shape.

    Attributes:
        left: ``[E, rows, r]``, s folded in.
        right: ``[E, r, columns]``.
    """

    left: Float32Array = field(repr=False)
    right: Float32Array = field(repr=False)

    def apply(self, rows: Float32Array, start: int) -> Float32Array:
        """Return rows ``start:start + n`` of the merged stack for those of the base."""
        height = self.left.shape[1]
        merged = np.empty_like(rows)
        done = 0
        while done < len(rows):
            expert, first = divmod(start + done, height)
            count = min(height - first, len(rows) - done)
            part = merged[done : done + count]
            thin_product(self.left[expert, first : first + count], self.right[expert], part)
            part += rows[done : done + count]
            done += count
        return merged


def expert_factors(
    a: Float32Array, b: Float32Array, update: LowRank, *, input_first: bool
) -> ExpertFactors:
    """Return the factors of `update` from its tensors in float32.

    Args:
        a: ``[E·r, in]``.
        b: ``[out, r·E]``.
        update: The update; E and s are taken from it.
        input_first: Whether the stack is ``[E, in, out]``.
    """
    stacked_a = a.reshape(update.experts, update.rank, -1)  # (E, r, in)
    stacked_b = _by_expert(b, update.experts)  # (E, out, r)
    left, right = (stacked_b, stacked_a)
    if input_first:
        left, right = stacked_a.transpose(0, 2, 1), stacked_b.transpose(0, 2, 1)
    scaled = np.ascontiguousarray(left) * np.float32(update.scale)
    return ExpertFactors(scaled, np.ascontiguousarray(right))


def _by_expert(b: npt.NDArray[Any], experts: int) -> npt.NDArray[Any]:
    """Return B ``[out, r·E]`` as ``[E, out, r]``."""
    return np.ascontiguousarray(b.reshape(len(b), -1, experts).transpose(2, 0, 1))


@dataclass(frozen=True)
class ExpertRows:
    """Aₑ, as a view of A's bytes on disk."""

    whole: Tensor = field(repr=False)
    experts: int
    expert: int

    @property
    def name(self) -> str:
        """The name of A."""
        return self.whole.name

    @property
    def dtype(self) -> DType:
        """The dtype of A."""
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``[r, in]``."""
        rows, *rest = self.whole.shape
        return (rows // self.experts, *rest)

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with Aₑ's bytes from `offset_bytes` on."""
        rank, inputs = self.shape
        start = self.expert * rank * inputs * self.dtype.itemsize_bytes
        self.whole.read_into(buffer, start + offset_bytes)


class Recent:
    """The B's that were read last, as ``[E, out, r]``; shared by the experts of an adapter.

    Experts are written one after the other, each with every E-th column of the same B: without this
    B would be read E times.
    """

    def __init__(self) -> None:
        self._arrays: OrderedDict[str, npt.NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def by_expert(self, b: Tensor, experts: int) -> npt.NDArray[Any]:
        """Return `b` expert by expert, read if it is not at hand."""
        with self._lock:
            found = self._arrays.pop(b.name, None)
            if found is None:
                found = _by_expert(read_all(b), experts)
            self._arrays[b.name] = found
            if len(self._arrays) > _RECENT:
                self._arrays.popitem(last=False)
            return found


@dataclass(frozen=True)
class ExpertColumns:
    """Rows `first` to `first + count` of Bₑ: those of one of the matrices that were stacked."""

    whole: Tensor = field(repr=False)
    experts: int
    expert: int
    first: int
    count: int
    recent: Recent = field(repr=False)

    @property
    def name(self) -> str:
        """The name of B."""
        return self.whole.name

    @property
    def dtype(self) -> DType:
        """The dtype of B."""
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``[count, r]``."""
        return (self.count, self.whole.shape[1] // self.experts)

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the rows' bytes from `offset_bytes` on."""
        stack = self.recent.by_expert(self.whole, self.experts)
        raw = bytes_of(stack[self.expert, self.first : self.first + self.count])
        buffer[:] = raw[offset_bytes : offset_bytes + len(buffer)]
