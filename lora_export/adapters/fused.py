"""Updates of q, k and v for a weight that holds all three, and the other way round.

Rows of a weight ``[out, in]`` are outputs, so a fused weight's update is the parts' updates in its
rows. It is low-rank itself, of the ranks' sum: with ``rows(p)`` the rows of part p,

    A = [A_q; A_k; A_v]        B[rows(p), columns of A_p] = s_p · B_p, zero elsewhere

and an update of the fused weight is, of part p, ``A`` and ``B[rows(p)]``. Both are exact, DoRA's
magnitudes too: they are one number per output. A part that the adapter lacks has rows of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.adapters.canonical import Added, LowRank, Rows, Saved
from lora_export.core.dtypes import DTYPES, to_float32
from lora_export.core.errors import UnsupportedError
from lora_export.core.tensors import ComposedTensor, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from lora_export.adapters.canonical import Computed
    from lora_export.core.tensors import Tensor

    Index = npt.NDArray[np.int64]

__all__ = ["Placed", "join_low_rank", "join_whole", "split_low_rank", "split_whole"]

_MATRIX: Final = 2


@dataclass(frozen=True)
class Placed:
    """A part's change, and the rows of the fused parameter that are the part's.

    Attributes:
        item: The change, under the part's own name.
        rows: The rows, one for each of the part's own, in their order.
    """

    item: LowRank | Saved | Added | Computed
    rows: Index


def join_low_rank(
    parts: Sequence[Placed], module: str, name: str | None, outputs: int, source: str
) -> LowRank:
    """Return the update of a fused weight for those of its parts.

    Args:
        parts: The parts' updates; no row twice.
        module: The fused module's path.
        name: The parameter's own name, where it is not the module's ``weight``.
        outputs: How many rows the fused weight has.
        source: The adapter, for messages.

    Raises:
        UnsupportedError: Magnitudes (DoRA) for some of the rows only, or parts that are no
            matrices of one width.
    """
    updates = [each.item for each in parts if isinstance(each.item, LowRank)]
    widths = {update.a.shape[1:] for update in updates}
    plain = all(
        len(update.b.shape) == _MATRIX and len(each.rows) == update.b.shape[0]
        for update, each in zip(updates, parts, strict=True)
    )
    if not plain or len(widths) > 1:
        msg = (
            f"the updates of {', '.join(u.parameter for u in updates)} of adapter {source!r} are "
            f"not plain updates of the rows of {module!r}, all of one width"
        )
        raise UnsupportedError(msg, hint="Is this the right base?")
    rank = sum(update.rank for update in updates)
    one_scale = len({update.scale for update in updates}) == 1
    dtypes = {update.b.dtype for update in updates} | {update.a.dtype for update in updates}
    dtype = dtypes.pop() if len(dtypes) == 1 and one_scale else DTYPES["float32"]

    def a() -> npt.NDArray[Any]:
        return np.concatenate([_read(update.a, dtype) for update in updates])

    def b() -> npt.NDArray[Any]:
        values = np.zeros((outputs, rank), dtype.numpy)
        start = 0
        for each, update in zip(parts, updates, strict=True):
            part = _read(update.b, dtype)
            if not one_scale:
                part = part * np.float32(update.scale)
            values[each.rows, start : start + update.rank] = part
            start += update.rank
        return values

    a_shape = (rank, *updates[0].a.shape[1:])
    path = module if name is None else f"{module}.{name}"
    return LowRank(
        module,
        ComposedTensor(f"{path}.lora_A", dtype, a_shape, tuple(u.a for u in updates), a),
        ComposedTensor(f"{path}.lora_B", dtype, (outputs, rank), tuple(u.b for u in updates), b),
        updates[0].scale if one_scale else 1.0,
        magnitude=_joined_magnitude(parts, updates, path, outputs, source),
        name=name,
    )


def _read(tensor: Tensor, dtype: Any) -> npt.NDArray[Any]:
    values = read_all(tensor)
    return values if tensor.dtype == dtype else to_float32(values)


def _joined_magnitude(
    parts: Sequence[Placed], updates: Sequence[LowRank], path: str, outputs: int, source: str
) -> Tensor | None:
    held = [update.magnitude for update in updates if update.magnitude is not None]
    if not held:
        return None
    if len(held) < len(parts) or sum(len(each.rows) for each in parts) < outputs:
        msg = (
            f"adapter {source!r} is DoRA and updates {', '.join(u.module for u in updates)}, only "
            f"some of the rows of {path!r}, which the base holds as one"
        )
        raise UnsupportedError(
            msg,
            hint="Merge it into the checkpoint that it was trained on: it holds them apart.",
        )

    def magnitude() -> npt.NDArray[Any]:
        values = np.empty(outputs, np.float32)
        for each, tensor in zip(parts, held, strict=True):
            values[each.rows] = to_float32(read_all(tensor)).reshape(-1)
        return values

    name = f"{path}.lora_magnitude_vector"
    return ComposedTensor(name, DTYPES["float32"], (outputs,), tuple(held), magnitude)


def join_whole(
    parts: Sequence[Placed], parameter: str, shape: Sequence[int]
) -> Saved | Added | Rows:
    """Return the update of a fused parameter whose parts are replaced or added to.

    Args:
        parts: The parts' changes, all `Saved` or all `Added`.
        parameter: The fused parameter.
        shape: Its shape.
    """
    tensors = tuple(each.item.tensors[0] for each in parts)
    outputs = shape[0]
    rest = tuple(tensors[0].shape[1:])
    added = [each.item for each in parts if isinstance(each.item, Added)]
    name = f"{parameter} (joined)"
    if added:
        wide = (outputs, *rest)

        def total() -> npt.NDArray[Any]:
            values = np.zeros(wide, np.float32)
            for each, item in zip(parts, added, strict=True):
                values[each.rows] = to_float32(read_all(item.tensor)) * np.float32(item.scale)
            return values

        tensor = ComposedTensor(name, DTYPES["float32"], wide, tensors, total)
        return Added(parameter, tensor, 1.0)
    rows = np.concatenate([each.rows for each in parts])
    order = np.argsort(rows)
    dtypes = {tensor.dtype for tensor in tensors}
    dtype = dtypes.pop() if len(dtypes) == 1 else DTYPES["float32"]

    def values() -> npt.NDArray[Any]:
        return np.concatenate([_read(tensor, dtype) for tensor in tensors])[order]

    joined = ComposedTensor(name, dtype, (len(rows), *rest), tensors, values)
    if len(rows) == outputs:
        return Saved(parameter, joined)
    return Rows(parameter, tuple(int(row) for row in rows[order]), joined)


def split_low_rank(update: LowRank, parts: Sequence[tuple[str, Index]]) -> tuple[LowRank, ...]:
    """Return the updates of the parts of a fused weight.

    Args:
        update: The fused weight's.
        parts: Each part's module and its rows.
    """
    return tuple(
        replace(
            update,
            module=module,
            name=None,
            b=_rows_of(update.b, rows),
            magnitude=None
            if update.magnitude is None
            else _rows_of(update.magnitude, rows, flat=True),
        )
        for module, rows in parts
    )


def split_whole(
    item: Saved | Added, parts: Sequence[tuple[str, Index]]
) -> tuple[Saved | Added, ...]:
    """Return the updates of the parts of a fused parameter that is replaced or added to.

    Args:
        item: The fused parameter's.
        parts: Each part's parameter and its rows.
    """
    return tuple(
        replace(item, parameter=parameter, tensor=_rows_of(item.tensor, rows))
        for parameter, rows in parts
    )


def _rows_of(tensor: Tensor, rows: Index, *, flat: bool = False) -> ComposedTensor:
    def compose() -> npt.NDArray[Any]:
        values = read_all(tensor)
        return (values.reshape(-1) if flat else values)[rows]

    shape = (len(rows),) if flat else (len(rows), *tensor.shape[1:])
    source: Callable[[], npt.NDArray[Any]] = compose
    return ComposedTensor(tensor.name, tensor.dtype, shape, (tensor,), source)
