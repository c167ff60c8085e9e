"""Quantized parameters as tensors to write: integers and scales of values that stream by.

    blocks of rows in float32 → quantized, block by block → P.quantized, then P.scale
    one scale per output      → a first pass for the largest magnitudes → P.scale, P.quantized

Nothing but the scales of one parameter is kept while its integers are written.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import DTYPES, Float32Array, cast
from lora_export.core.errors import InputError
from lora_export.core.quantization import integers_name, scales_name, zero_points_name
from lora_export.weights.float4_entries import carried_float4_entries, float4_entries
from lora_export.weights.quantization.blocks import quantize_blocks
from lora_export.weights.quantization.channels import (
    channel_scales,
    largest_magnitudes,
    quantize_channels,
)
from lora_export.weights.quantization.error_feedback import round_with_feedback
from lora_export.weights.quantization.packing import pack_int4
from lora_export.weights.quantized.carried import carried_integers
from lora_export.weights.stream import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from lora_export.core.dtypes import DType
    from lora_export.core.parameters import Parameter
    from lora_export.core.quantization import Quantized
    from lora_export.core.tensors import Tensor

    Array = npt.NDArray[Any]
    Moments = Callable[[str], Float32Array | None]

__all__ = ["quantized_entries", "unchanged_entries"]

_HALF_BYTE: Final = 4
_CARRIED_ELEMENTS: Final = 1 << 22
_CARRIED_ROWS: Final = 32
_KEEP: Final = "Keep it as it is: --quantize-keep NAME; or export in float32: --dtype float32."


def quantized_entries(
    parameter: Parameter,
    quantized: Quantized,
    value: Callable[[Parameter], Entry],
    *,
    method: str,
    moments: Moments | None = None,
) -> list[Entry]:
    """Return the integers and scales that are written of a parameter; see `entries_of`.

    Args:
        parameter: The parameter.
        quantized: Its scheme.
        value: Returns the entry of its values, in the dtype of the parameter that it is given.
        method: A name of `lora_export.weights.quantization.methods.METHODS`.
        moments: Returns Σ xᵀ x of what a parameter is multiplied with, or None, for a method that
            needs it; a parameter of which nothing is known is rounded to nearest.
    """
    dtype = parameter.stored_dtype
    exact = value(replace(parameter, dtype="float32", quantized=None))
    if quantized.floats is not None:
        return float4_entries(parameter, exact)
    if quantized.block_size == 0:
        return _per_channel(parameter.name, exact, quantized, dtype)
    own = partial(moments, parameter.name) if moments is not None else _unknown
    made = _in_blocks(exact, quantized, dtype, method, own)
    middle = partial(np.zeros, quantized.scales_shape(exact.shape), np.int8)
    return [*made, *_zero_points(parameter.name, quantized, exact.shape, middle)]


def unchanged_entries(
    parameter: Parameter, quantized: Quantized, source: Tensor
) -> list[Entry] | None:
    """Return the integers and scales that the base stores in the form of `parameter`, unchanged.

    None where it stores others. Their layout is the one that `quantized_entries` gives.

    Args:
        parameter: The parameter.
        quantized: Its scheme.
        source: The tensor of the base.

    Raises:
        InputError: The dtype of the export cannot hold the scales.
    """
    if quantized.floats is not None:
        return carried_float4_entries(parameter, source)
    dtype = parameter.stored_dtype
    found = carried_integers(source, parameter)
    if found is None:
        return None
    shape = parameter.stored_shape
    step = max(1, _CARRIED_ELEMENTS // (shape[1] * _CARRIED_ROWS)) * _CARRIED_ROWS

    def integers() -> Iterator[Array]:
        for first in range(0, shape[0], step):
            yield _packed(found.integers(first, min(shape[0], first + step)), quantized)

    scales_shape = quantized.scales_shape(shape)

    def scales() -> Iterator[Array]:
        yield cast(found.scales().reshape(scales_shape), dtype, name=scales_name(parameter.name))

    entry = _integers_entry(parameter.name, shape, quantized, integers)
    zeros = _zero_points(parameter.name, quantized, shape, found.zero_points)
    after = entry.name if quantized.block_size else None
    return [
        entry,
        Entry(scales_name(parameter.name), dtype, scales_shape, scales, after=after),
        *zeros,
    ]


def _zero_points(
    name: str, quantized: Quantized, shape: tuple[int, ...], read: Callable[[], Array]
) -> list[Entry]:
    """Return the zero points of a parameter that has them, packed as its integers are."""
    if not quantized.zero_points:
        return []

    def blocks() -> Iterator[Array]:
        yield _packed(np.ascontiguousarray(read()), quantized)

    own = quantized.scales_shape(shape)
    half = quantized.bits == _HALF_BYTE
    stored = (quantized.zero_points_bytes(shape),) if half else own
    dtype = DTYPES["uint8" if half else "int8"]
    return [Entry(zero_points_name(name), dtype, stored, blocks, graph_shape=own)]


def _unknown() -> None:
    """Return nothing: what a parameter is multiplied with was not measured."""


def _in_blocks(
    exact: Entry,
    quantized: Quantized,
    dtype: DType,
    method: str,
    moments: Callable[[], Float32Array | None],
) -> list[Entry]:
    """Return integers, and behind them the scales that were found with them.

    Where moments are known, the weight is held whole.
    """
    found: list[Array] = []
    name = exact.name

    def integers() -> Iterator[Array]:
        found.clear()
        own = moments()
        whole = [np.concatenate(list(exact.blocks()))] if own is not None else None
        for rows in whole or _whole_blocks(exact, quantized.block_size):
            with _named(name, dtype):
                q, scales = quantize_blocks(
                    rows,
                    bits=quantized.bits,
                    block_size=quantized.block_size,
                    method=method,
                    scale_dtype=dtype.numpy,
                )
                if own is not None:
                    q = round_with_feedback(rows, scales, own, bits=quantized.bits)
            found.append(scales)
            yield _packed(q, quantized)

    def scales() -> Iterator[Array]:
        yield from found
        found.clear()

    entry = _integers_entry(name, exact.shape, quantized, integers)
    shape = quantized.scales_shape(exact.shape)
    return [entry, Entry(scales_name(name), dtype, shape, scales, after=entry.name)]


def _per_channel(name: str, exact: Entry, quantized: Quantized, dtype: DType) -> list[Entry]:
    """Return the scales of a first pass, and the integers of a second.

    The scale of the largest magnitude is all that there is to choose.
    """
    by_rows = quantized.axis == 0
    found: list[Array] = []

    def known() -> Array:
        if not found:
            found.append(_largest(name, exact, quantized, dtype, by_rows=by_rows))
        return found[0]

    def scales() -> Iterator[Array]:
        yield known()

    def integers() -> Iterator[Array]:
        start = 0
        for rows in exact.blocks():
            count = rows.shape[0]
            own = known()[start : start + count] if by_rows else known()
            with _named(name, dtype):
                q = quantize_channels(rows.T if by_rows else rows, own, bits=quantized.bits)
            yield _packed(q.T if by_rows else q, quantized)
            start += count
        found.clear()

    shape = quantized.scales_shape(exact.shape)
    return [
        Entry(scales_name(name), dtype, shape, scales),
        _integers_entry(name, exact.shape, quantized, integers),
    ]


def _largest(
    name: str, exact: Entry, quantized: Quantized, dtype: DType, *, by_rows: bool
) -> Array:
    """Return the scales of the largest magnitudes, of rows or of columns."""
    parts = [largest_magnitudes(rows.T if by_rows else rows) for rows in exact.blocks()]
    largest = np.concatenate(parts) if by_rows else np.maximum.reduce(parts)
    with _named(name, dtype):
        return channel_scales(largest, bits=quantized.bits, scale_dtype=dtype.numpy)


def _integers_entry(
    name: str,
    shape: tuple[int, ...],
    quantized: Quantized,
    blocks: Callable[[], Iterator[Array]],
) -> Entry:
    packed = quantized.bits == _HALF_BYTE
    stored = (quantized.integers_bytes(shape),) if packed else shape
    dtype = DTYPES["uint8" if packed else "int8"]
    return Entry(integers_name(name), dtype, stored, blocks, graph_shape=shape)


def _packed(q: Array, quantized: Quantized) -> Array:
    return pack_int4(q) if quantized.bits == _HALF_BYTE else q


def _whole_blocks(exact: Entry, size: int) -> Iterator[Float32Array]:
    """Yield rows of whole blocks: what is left of one piece begins the next."""
    rest: Float32Array | None = None
    for rows in exact.blocks():
        joined = rows if rest is None else np.concatenate([rest, rows])
        whole = joined.shape[0] // size * size
        rest = joined[whole:].copy() if whole < joined.shape[0] else None
        if whole:
            yield joined[:whole]


class _named:  # noqa: N801  (a context manager, used as a function)
    """Names the tensor in an error of the arithmetic."""

    def __init__(self, name: str, dtype: DType) -> None:
        self._name, self._dtype = name, dtype

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Translate the error."""
        if isinstance(error, OverflowError):
            msg = f"{self._dtype.name} cannot hold the scales of tensor {self._name!r}"
            raise InputError(msg, hint=_KEEP) from error
        if isinstance(error, ValueError):
            msg = f"tensor {self._name!r} cannot be quantized: {error}"
            raise InputError(msg, hint="The checkpoint or the adapter is damaged.") from error
