"""A graph's tensor compared with a checkpoint's: a few elements first, then every byte.

A digest would have to read every candidate whole, in both layouts. A probe of `_PROBES` elements
tells different weights apart, and what it leaves is compared block by block: memory is bounded by a
block, and what is found equal is equal.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core.parameters import Parameter
from lora_export.core.tensors import bytes_of
from lora_export.weights.stream import base_entry

if TYPE_CHECKING:
    from lora_export.core.dtypes import DType
    from lora_export.core.tensors import Tensor

__all__ = ["is_uniform", "probe", "probe_key", "probes_agree", "same_stored"]

Array = npt.NDArray[Any]

_PROBES: Final = 32
_FLUSHED: Final = 2.0**-23
"""onnxconverter-common stores magnitudes below 1e-7 as 1e-7, at most two steps of float16 away."""

_BLOCK_BYTES: Final = 1 << 22


def probe(tensor: Tensor, dtype: DType, *, transposed: bool = False) -> Array:
    """Return elements of `tensor` at fixed places of its (transposed) layout, cast to `dtype`."""
    count = prod(tensor.shape)
    places = np.unique(np.linspace(0, count - 1, min(_PROBES, count)).astype(np.int64))
    if transposed:
        rows, columns = tensor.shape  # places are row-major in [columns, rows]
        places = (places % rows) * columns + places // rows
    values = np.empty(len(places), tensor.dtype.numpy)
    raw, size = bytes_of(values), tensor.dtype.itemsize_bytes
    for index, place in enumerate(places.tolist()):
        tensor.read_into(raw[index * size : (index + 1) * size], place * size)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype.numpy)


def probe_key(values: Array) -> bytes:
    """Return a key that equal tensors share: the bytes of their probes, tiny values as zero."""
    if values.dtype == np.float16:
        tiny = np.abs(values.astype(np.float32)) <= _FLUSHED
        values = np.where(tiny, np.float16(0), values)
    return values.tobytes()


def probes_agree(one: Array, other: Array) -> bool:
    """Whether two probes may come from equal tensors."""
    return one.shape == other.shape and _equal(one, other)


def same_stored(source: Tensor, held: Tensor, *, transposed: bool) -> bool:
    """Whether `held` is what the writer would store of `source` in that dtype and layout.

    Raises:
        InputError: A file ends too early, or the cast overflows.
    """
    parameter = Parameter(source.name, source.shape, held.dtype.name, "", transposed)
    if parameter.stored_shape != held.shape:
        return False
    if not probes_agree(probe(source, held.dtype, transposed=transposed), probe(held, held.dtype)):
        return False
    done = 0
    for block in base_entry(parameter, source, block_bytes=_BLOCK_BYTES).blocks():
        actual = np.empty(block.shape, block.dtype)
        held.read_into(bytes_of(actual), done)
        if not _equal(block, actual):
            return False
        done += block.nbytes
    return True


def is_uniform(tensor: Tensor) -> bool:
    """Whether every element is the same, as zeros and ones of a new model are."""
    first = probe(tensor, tensor.dtype)
    if not bool((first == first[:1]).all()):
        return False
    parameter = Parameter(tensor.name, tensor.shape, tensor.dtype.name, "")
    blocks = base_entry(parameter, tensor, block_bytes=_BLOCK_BYTES).blocks()
    return all(bool((block == first[0]).all()) for block in blocks)


def _equal(one: Array, other: Array) -> bool:
    if bytes_of(np.ascontiguousarray(one)) == bytes_of(np.ascontiguousarray(other)):
        return True
    if one.dtype != np.float16:
        return False
    with np.errstate(invalid="ignore"):
        apart = np.abs(one.astype(np.float32) - other.astype(np.float32))
    return bool((apart <= _FLUSHED).all())
