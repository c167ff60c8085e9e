"""The rounding loss of merged weights, compared with the adapter's delta.

With W the stored value, W0 the base's and ΔW the exact delta, all of one tensor:

    relative error  = ‖(W − W0) − ΔW‖ / ‖ΔW‖        (Frobenius; 0 where ΔW = 0)
    unmoved share   = #{entries with W = W0} / #{entries}

A float16 holds 11 bits of a number: a delta a thousand times smaller than its weight is mostly
rounded away (relative error near 1), though the merge is correct to the last bit. Sums are float64.

For float16 and bfloat16 ΔW is taken from the merge in float32, whose own rounding is 2⁻¹³ and 2⁻¹⁶
of theirs. For wider dtypes it is computed once more in float64 from the adapter's factors; what is
no plain ``s·B A`` is measured against float32 there too, and says 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core import halves
from lora_export.core.tensors import read_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_export.adapters.canonical import LowRank
    from lora_export.core.parameters import Parameter
    from lora_export.core.reports.fidelity_report import FidelityRow

__all__ = [
    "LOSSY_RELATIVE_ERROR",
    "NOISE",
    "Fidelity",
    "FidelityMeter",
    "fidelity_rows",
    "is_lossy",
    "overall",
]

LOSSY_RELATIVE_ERROR: Final[dict[str, float]] = {
    "float64": 0.1,
    "float32": 0.1,
    "bfloat16": 0.1,
    "float16": 0.1,
}
"""Relative error of a tensor past which a merge warns, by the dtype that it is stored in.

At 0.1 the noise that rounding adds has a hundredth of the delta's energy.
"""

NOISE: Final = 2e-7
"""‖ΔW‖ / ‖W0‖ up to which a delta is the rounding of float32 and no update: a few times 2⁻²⁴, for
DoRA divides by a length that float32 has rounded."""

_NARROW: Final = frozenset({"float16", "bfloat16"})
_MATRIX: Final = 2

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Fidelity:
    """The error of stored weights against the delta, of one tensor or of several.

    Attributes:
        error_squared: ‖(W − W0) − ΔW‖².
        delta_squared: ‖ΔW‖².
        unmoved: Entries with W = W0.
        entries: All entries.
    """

    error_squared: float
    delta_squared: float
    unmoved: int
    entries: int

    @property
    def relative_error(self) -> float:
        """‖(W − W0) − ΔW‖ / ‖ΔW‖."""
        if self.delta_squared == 0.0:
            return 0.0
        return math.sqrt(self.error_squared / self.delta_squared)

    @property
    def unmoved_share(self) -> float:
        """The share of entries that the merge left as they were."""
        return self.unmoved / self.entries if self.entries else 0.0


class FidelityMeter:
    """Observes the merge of one tensor (an ``Observer`` of ``weights/stream.py``)."""

    def __init__(self, parameter: Parameter, update: LowRank | None) -> None:
        self._wide = _WideDelta(parameter, update) if _has_wide_delta(parameter, update) else None
        self._error = self._delta = 0.0
        self._unmoved = self._entries = 0
        self._base_mean_square: float | None = None
        self._moved = False

    def __call__(self, start: int, base: Array, merged: Array, stored: Array) -> None:
        """Take rows from `start` on: W0 and the merged value in float32, and what is stored."""
        if self._base_mean_square is None:
            self._base_mean_square = float(np.vdot(base, base)) / max(base.size, 1)
        self._moved = self._moved or not _is_cast_of(base, stored)
        if self._wide is not None:
            self._take_wide(self._wide.rows(start, len(base)), base, stored)
            return
        error, delta, unmoved = halves.measure(base, merged, stored)
        self._error += error
        self._delta += delta
        self._unmoved += unmoved
        self._entries += base.size

    def _take_wide(self, delta: Array, base: Array, stored: Array) -> None:
        error = stored.astype(np.float64)
        error -= base
        self._unmoved += int(np.count_nonzero(error == 0.0))
        error -= delta
        self._error += float(np.vdot(error, error))
        self._delta += float(np.vdot(delta, delta))
        self._entries += base.size

    def result(self) -> Fidelity:
        """Return the fidelity of the blocks so far."""
        return Fidelity(self._error, self._delta, self._unmoved, self._entries)

    @property
    def is_unmoved(self) -> bool:
        """Whether every stored entry is that of W0 in the same dtype."""
        return not self._moved

    @property
    def is_noise(self) -> bool:
        """Whether ‖ΔW‖ ≤ `NOISE`·‖W0‖, ‖W0‖ taken from the first block of rows."""
        limit = NOISE**2 * (self._base_mean_square or 0.0) * self._entries
        return self._delta <= limit


def _is_cast_of(base: Array, stored: Array) -> bool:
    """Return whether `stored` is `base` in another dtype; a first row that differs is enough."""
    with np.errstate(over="ignore"):
        return all(
            bool(np.array_equal(stored[part], base[part].astype(stored.dtype)))
            for part in (slice(0, 1), slice(1, None))
        )


def _has_wide_delta(parameter: Parameter, update: LowRank | None) -> bool:
    return (
        update is not None
        and parameter.dtype not in _NARROW
        and update.magnitude is None
        and len(parameter.shape) == _MATRIX
    )


class _WideDelta:
    """Rows of ``s·B A`` in float64, in the checkpoint's layout; see ``adapters/delta.py``."""

    def __init__(self, parameter: Parameter, update: LowRank | None) -> None:
        assert update is not None  # noqa: S101  (by the caller)
        self._update = update
        self._input_first = update.input_first(parameter)
        self._factors: tuple[Array, Array] | None = None

    def rows(self, start: int, count: int) -> Array:
        """Return rows ``start:start + count``, the factors read at the first call."""
        if self._factors is None:
            a = read_all(self._update.a).astype(np.float64)  # (r, in)
            b = read_all(self._update.b).astype(np.float64)  # (out, r)
            left, right = (a.T, b.T) if self._input_first else (b, a)
            self._factors = np.ascontiguousarray(left) * self._update.scale, right
        left, right = self._factors
        delta: Array = left[start : start + count] @ right
        return delta


def overall(parts: Iterable[Fidelity]) -> Fidelity:
    """Return the fidelity of several tensors taken as one."""
    rows = list(parts)
    return Fidelity(
        math.fsum(row.error_squared for row in rows),
        math.fsum(row.delta_squared for row in rows),
        sum(row.unmoved for row in rows),
        sum(row.entries for row in rows),
    )


def fidelity_rows(parts: Mapping[str, tuple[str, Fidelity]]) -> FidelityRow:
    """Return the figures of several tensors for a report, with those that lost too much.

    Args:
        parts: Name → the dtype that it is stored in, and its fidelity.
    """
    from lora_export.core.reports.fidelity_report import FidelityRow, TensorFidelity

    total = overall(each for _, each in parts.values())
    lossy = [name for name, (dtype, each) in parts.items() if is_lossy(each, dtype)]
    return FidelityRow(
        relative_error=total.relative_error,
        unmoved_share=total.unmoved_share,
        lossy=sorted(lossy, key=lambda name: (-parts[name][1].relative_error, name)),
        tensors={
            name: TensorFidelity(
                dtype=dtype,
                relative_error=each.relative_error,
                unmoved_share=each.unmoved_share,
            )
            for name, (dtype, each) in sorted(parts.items())
        },
    )


def is_lossy(fidelity: Fidelity, dtype: str) -> bool:
    """Whether a tensor stored in `dtype` lost more of its delta than the table allows."""
    return fidelity.relative_error > LOSSY_RELATIVE_ERROR[dtype]
