"""The change that an adapter makes to one parameter, by blocks of rows, in float32.

In order: (1) rows that the adapter replaces, (2) ``s·B A``, and DoRA's magnitude, or what another
method makes of the weight, (3) what it adds to a bias. A parameter that the adapter carries whole,
and changes no further, does not come here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lora_export.adapters.delta import Factors, factors_of, read_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lora_export.adapters.canonical import Rows, Transform
    from lora_export.adapters.experts import ExpertFactors
    from lora_export.adapters.resolve import Update
    from lora_export.core.dtypes import Float32Array

__all__ = ["Change", "change_of"]


@dataclass(frozen=True)
class Change:
    """A change of one parameter, its tensors read.

    Attributes:
        factors: ``s·B A``, or None.
        added: What is added, in the parameter's shape, or None.
        indices: The rows that are replaced, ascending; of a transposed weight, the columns.
        values: Their values, ``[len(indices), …]``.
        transposed: Whether the blocks are those of the transposed weight.
        transform: The method that computes the weight, or None.
        shape: The weight's shape in the blocks' layout.
        computed: The new weight, where the method needs the whole of the old one (`measured`).
    """

    factors: Factors | ExpertFactors | None = None
    added: Float32Array | None = field(default=None, repr=False)
    indices: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    values: Float32Array | None = field(default=None, repr=False)
    transposed: bool = False
    transform: Transform | None = None
    shape: tuple[int, ...] = ()
    computed: Float32Array | None = field(default=None, repr=False)

    @property
    def in_place(self) -> bool:
        """Whether `apply` writes into the rows that it is given."""
        updated = self.factors is not None or self.transform is not None
        return self.indices is not None or (not updated and self.added is not None)

    def basis(self, rows: Float32Array, start: int) -> Float32Array:
        """Return the rows that the low-rank update is added to, some of them replaced."""
        return self.replaced(rows.copy(), start) if self.in_place else rows

    def apply(self, rows: Float32Array, start: int) -> Float32Array:
        """Return rows ``start:start + n`` of the changed parameter; see `in_place`."""
        rows = self.replaced(rows, start)
        if self.factors is not None:
            rows = self.factors.apply(rows, start)
        elif self.computed is not None:
            rows = self.computed[start : start + len(rows)]
        elif self.transform is not None:
            rows = self.transform.apply(rows, start)
        if self.added is not None:
            rows += self.added[start : start + len(rows)] if rows.ndim else self.added
        return rows

    def measured(self, blocks: Callable[[], Iterable[tuple[Float32Array, int]]]) -> Change:
        """Return the change with what needs all blocks: DoRA's lengths, or the new weight."""
        if self.transform is not None and (self.transposed or not self.transform.by_rows):
            return replace(self, computed=self._computed(self.transform, blocks()))
        if not isinstance(self.factors, Factors) or not self.factors.needs_norms:
            return self
        replaced = ((self.replaced(rows, start), start) for rows, start in blocks())
        return replace(self, factors=self.factors.with_norms(replaced))

    def _computed(
        self, transform: Transform, blocks: Iterable[tuple[Float32Array, int]]
    ) -> Float32Array:
        """Return the new weight from the whole of the old one, in the blocks' layout."""
        weight = np.empty(self.shape, np.float32)
        for rows, start in blocks:
            weight[start : start + len(rows)] = self.replaced(rows, start)
        if not self.transposed:
            return transform.apply(weight, 0)
        turned = np.ascontiguousarray(weight.T)
        del weight
        return np.ascontiguousarray(transform.apply(turned, 0).T)

    def replaced(self, rows: Float32Array, start: int) -> Float32Array:
        """Write the rows that the adapter replaces into `rows`, and return them."""
        if self.indices is None or self.values is None:
            return rows
        if self.transposed:
            rows[:, self.indices] = self.values[:, start : start + len(rows)].T
            return rows
        first, last = np.searchsorted(self.indices, [start, start + len(rows)])
        rows[self.indices[first:last] - start] = self.values[first:last]
        return rows


def change_of(update: Update, *, transposed: bool) -> Change:
    """Read the tensors of `update`.

    Args:
        update: What the adapter does to a parameter.
        transposed: Whether the blocks that will be given are those of the transposed weight.

    Raises:
        AdapterError: A tensor holds NaN or infinity.
    """
    change = Change(transposed=transposed, shape=update.parameter.stored_shape)
    if update.computed is not None:
        change = replace(change, transform=update.computed.transform(update.parameter))
    if update.low_rank is not None:
        factors = factors_of(update.low_rank, update.parameter, transposed=transposed)
        change = replace(change, factors=factors)
    if update.added is not None:
        scale = np.float32(update.added.scale)
        change = replace(change, added=read_finite(update.added.tensor) * scale)
    if update.rows is not None:
        indices, values = _rows(update.rows)
        change = replace(change, indices=indices, values=values)
    return change


def _rows(rows: Rows) -> tuple[npt.NDArray[np.int64], Float32Array]:
    return np.array(rows.indices, np.int64), read_finite(rows.tensor)
