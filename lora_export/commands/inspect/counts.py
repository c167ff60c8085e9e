"""Counts that the reports of ``inspect`` share."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from lora_export.core.tensors import nbytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_export.core.tensors import Tensor

__all__ = ["INDEX_DTYPES", "bytes_by_dtype"]

INDEX_DTYPES: Final = frozenset({"int64", "bool"})
"""Dtypes of position tables and masks, which are not parameters."""


def bytes_by_dtype(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Return the bytes in each dtype, the largest first."""
    count: Counter[str] = Counter()
    for tensor in tensors:
        count[tensor.dtype.name] += nbytes(tensor)
    return dict(count.most_common())
