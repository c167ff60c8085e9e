"""Arrays as the bytes of an ``.npz`` file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

__all__ = ["npz_bytes"]


def npz_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return the compressed ``.npz`` file of `arrays`, numbers alone.

    NumPy 2.1 has a keyword ``allow_pickle`` here, which older ones store as one more array.

    Raises:
        TypeError: An array holds Python objects, which would be pickled.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject:
            msg = f"array {name!r} holds Python objects"
            raise TypeError(msg)
    save: Any = np.savez_compressed
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()
