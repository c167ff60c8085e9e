"""Parameters that a graph stores as four-bit floats: codes and scales, carried over or rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import DTYPES, cast
from lora_export.core.errors import InputError
from lora_export.core.quantization import integers_name, scales_name
from lora_export.weights.quantization.float4_rounding import pack_codes, quantize_float4
from lora_export.weights.quantized.carried_codes import carried_codes
from lora_export.weights.stream import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

    Array = npt.NDArray[Any]

__all__ = ["carried_float4_entries", "float4_entries"]

_BLOCK_BYTES: Final = 1 << 22


def carried_float4_entries(parameter: Parameter, source: Tensor) -> list[Entry] | None:
    """Return the codes and scales that the base stores in the form of `parameter`; else None.

    Raises:
        InputError: The dtype of the export cannot hold the scales.
    """
    quantized, dtype = parameter.quantized, parameter.stored_dtype
    found = carried_codes(source, parameter)
    if quantized is None or found is None:
        return None
    size, shape = quantized.integers_bytes(parameter.stored_shape), parameter.stored_shape
    scales_shape = quantized.scales_shape(shape)

    def codes() -> Iterator[Array]:
        for first in range(0, size, _BLOCK_BYTES):
            yield found.packed(first, min(size, first + _BLOCK_BYTES))

    def scales() -> Iterator[Array]:
        yield cast(found.scales().reshape(scales_shape), dtype, name=scales_name(parameter.name))

    return _entries(parameter, parameter.stored_shape, codes, scales)


def float4_entries(parameter: Parameter, exact: Entry) -> list[Entry]:
    """Return the codes and scales that values round to.

    Args:
        parameter: The parameter, with its scheme.
        exact: Its values in float32, outputs first.
    """
    quantized, dtype = parameter.quantized, parameter.stored_dtype
    assert quantized is not None  # noqa: S101  (by the caller)
    assert quantized.floats is not None  # noqa: S101  (by the caller)
    floats, block = quantized.floats, quantized.block_size
    found: list[Array] = []

    def codes() -> Iterator[Array]:
        found.clear()
        for rows in exact.blocks():
            values, scales = quantize_float4(
                rows, floats, block_size=block, scale_dtype=dtype.numpy
            )
            if not bool(np.isfinite(scales).all()):
                msg = f"a value of {parameter.name!r} is larger than {dtype.name} can hold"
                raise InputError(msg, hint="Export in float32: --dtype float32.")
            found.append(scales)
            yield pack_codes(values)

    def scales() -> Iterator[Array]:
        yield from found
        found.clear()

    return _entries(parameter, exact.shape, codes, scales)


def _entries(
    parameter: Parameter,
    shape: tuple[int, ...],
    codes: Callable[[], Iterable[Array]],
    scales: Callable[[], Iterable[Array]],
) -> list[Entry]:
    """Return the entries of codes and scales of a weight of `shape`."""
    quantized, name = parameter.quantized, parameter.name
    assert quantized is not None  # noqa: S101  (by the caller)
    size = quantized.integers_bytes(shape)
    entry = Entry(integers_name(name), DTYPES["uint8"], (size,), codes)
    dtype, after = parameter.stored_dtype, entry.name
    return [
        entry,
        Entry(scales_name(name), dtype, quantized.scales_shape(shape), scales, after=after),
    ]
