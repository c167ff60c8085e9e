"""Updates of methods other than LoRA for weights that the base stores fused, or in parts.

    joined   the parts' rows of the fused weight are computed by the parts' updates, one by one
    split    rows i:j of a fused weight's update, for the weight that holds these rows

The methods that are computed here change each output's row from that row alone. A method that PEFT
merges needs its whole weight, and a product (VeRA) the size of every weight: both are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.adapters.canonical import Computed, Transform
from lora_export.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter

    Index = npt.NDArray[np.int64]

__all__ = ["join_computed", "split_computed"]


def join_computed(parts: Sequence[tuple[Computed, Index]], parameter: str) -> Computed:
    """Return one update of a fused weight from those of its parts.

    Args:
        parts: Each part's update, and its rows of the fused weight.
        parameter: The fused weight's name.

    Raises:
        UnsupportedError: The method changes whole weights only.
    """
    for item, _ in parts:
        _require_rows(item, parameter)

    def misfit(whole: Parameter) -> str | None:
        found = (item.misfit(_with_rows(whole, len(rows))) for item, rows in parts)
        return next((each for each in found if each is not None), None)

    def transform(whole: Parameter) -> Transform:
        own = [(item.transform(_with_rows(whole, len(rows))), rows) for item, rows in parts]

        def apply(weight: Float32Array, _: int) -> Float32Array:
            new = weight.copy()
            for each, rows in own:
                new[rows] = each.apply(weight[rows], 0)
            return new

        return Transform(apply, by_rows=False)

    first = parts[0][0]
    tensors = tuple(tensor for item, _ in parts for tensor in item.tensors)
    optional = all(item.optional for item, _ in parts)
    return Computed(parameter, first.method, tensors, misfit, transform, optional=optional)


def split_computed(item: Computed, pieces: Sequence[tuple[str, Index]]) -> Iterator[Computed]:
    """Yield the update of each part of a weight that the base stores in parts.

    Args:
        item: The update of the fused weight.
        pieces: The parts' names, and their rows of the fused weight, in order.

    Raises:
        UnsupportedError: The method changes whole weights only.
    """
    _require_rows(item, pieces[0][0])
    count = sum(len(rows) for _, rows in pieces)
    for path, rows in pieces:
        yield _piece(item, path, rows, count)


def _piece(item: Computed, path: str, rows: Index, count: int) -> Computed:
    first = int(rows[0])

    def misfit(part: Parameter) -> str | None:
        if part.shape[:1] != (len(rows),):
            return f"the part has {len(rows)} rows, the weight is {list(part.shape)}"
        return item.misfit(_with_rows(part, count))

    def transform(part: Parameter) -> Transform:
        inner = item.transform(_with_rows(part, count))
        return Transform(lambda block, start: inner.apply(block, start + first))

    return replace(
        item, parameter=path, misfit=misfit, transform=transform, outputs=None, inputs=None
    )


def _with_rows(parameter: Parameter, count: int) -> Parameter:
    return replace(parameter, shape=(count, *parameter.shape[1:]), module_type="Linear")


def _require_rows(item: Computed, other: str) -> None:
    if item.whole or item.product is not None or item.embedding:
        msg = (
            f"the update of {item.parameter!r} ({item.method}) needs that weight as a whole, and "
            f"the base has {other!r}"
        )
        raise UnsupportedError(
            msg, hint="Merge it with PEFT into the checkpoint that it was trained on."
        )
