"""Weights that bitsandbytes stored: NF4 and FP4 in blocks, and int8 by rows.

    4 bits   W                            uint8 [⌈n/2⌉, 1]: n codes in C order, high half first;
                                          or the same bytes as float16, bfloat16 or float32
             W.quant_map                  float32 [16]: the value of each code
             W.absmax                     float32 [⌈n/64⌉], or uint8 where it is quantized too
             W.quant_state.bitsandbytes__nf4 (or __fp4)   JSON as bytes: shape, dtype, blocksize …
             W.nested_absmax, W.nested_quant_map [256]    of an absmax that is quantized too

             value[i] = quant_map[code[i]] · absmax[i // blocksize]
             absmax[j] = nested_quant_map[code[j]] · nested_absmax[j // nested_blocksize] + offset

    8 bits   M.weight int8 [out, in], M.SCB float32 [out]
             value[o, i] = (code[o, i] · SCB[o]) · float32(1/127)

All in float32, rounded once to the dtype: that of the state (4 bits), or of the model (8 bits).
The order of the products is that of ``dequantize_4bit`` and ``int8_vectorwise_dequant``
(https://github.com/bitsandbytes-foundation/bitsandbytes, ``backends/default/ops.py``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.core.dtypes import DTYPES, Float32Array, by_name
from lora_export.core.quantization_tables import BlockState, parse_state
from lora_export.core.tensors import is_shape, read_all
from lora_export.weights.quantized.panels import (
    BytesTensor,
    damaged,
    finite,
    high_half_first,
    read_elements,
    read_panel,
)
from lora_export.weights.quantized.weight import Form, QuantizedWeight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.core.tensors import Tensor
    from lora_export.weights.quantized.stored import Stored
    from lora_export.weights.quantized.weight import Span

__all__ = ["METHOD", "FourBitCodec", "find_4bit_weights", "find_8bit_weights"]

METHOD: Final = "bitsandbytes"
_STATE: Final = re.compile(r"(.+)\.quant_state\.bitsandbytes__(nf4|fp4)")
_PART: Final = re.compile(r"(.+)\.(?:absmax|quant_map|nested_absmax|nested_quant_map)")
_STATE_LIMIT_BYTES: Final = 1 << 14
_CODES: Final = 16
_NESTED_CODES: Final = 256
_PER_127: Final = np.float32(7.874015718698502e-3)
_MATRIX: Final = 2
_STORAGE: Final = frozenset({"float16", "bfloat16", "float32"})
"""Dtypes that codes are stored as, so that FSDP can shard them with other weights."""


@dataclass(frozen=True)
class _Nested:
    """The codes of an absmax, and what they stand for."""

    scales: Tensor
    values: Float32Array = field(repr=False)
    block_size: int
    offset: np.float32


@dataclass(frozen=True)
class FourBitCodec:
    """Codes in C order, two to a byte, and a scale for each block of them."""

    codes: Tensor
    absmax: Tensor
    values: Float32Array = field(repr=False)
    block_size: int
    width: int
    nested: _Nested | None

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        if rows[1] - rows[0] == 1:
            start = rows[0] * self.width
            return self._flat(start + columns[0], start + columns[1])[None]
        whole = self._flat(rows[0] * self.width, rows[1] * self.width)
        return whole.reshape(-1, self.width)[:, columns[0] : columns[1]]

    def _flat(self, first: int, last: int) -> Float32Array:
        """Return elements `first` to `last` in C order."""
        size = self.block_size
        begin, end = first // size * size, -(-last // size) * size
        packed = read_elements(self.codes, begin // 2, min(-(-end // 2), self.codes.shape[0]))
        halves = high_half_first(packed)[begin % 2 :]
        found = np.zeros(end - begin, np.float32)
        found[: halves.size] = self.values[halves[: found.size]]
        absmax = self.scales(begin // size, end // size)
        blocks = found.reshape(-1, size) * absmax[:, None]
        return np.asarray(blocks.reshape(-1)[first - begin : last - begin], np.float32)

    def scales(self, first: int, last: int) -> Float32Array:
        """Return the scales of blocks `first` to `last`, in float32."""
        if self.nested is None:
            return finite(self.absmax, read_elements(self.absmax, first, last))
        nested = self.nested
        begin, end = first // nested.block_size, -(-last // nested.block_size)
        scales = finite(nested.scales, read_elements(nested.scales, begin, end))
        own = scales[np.arange(first, last) // nested.block_size - begin]
        codes = read_elements(self.absmax, first, last)
        return np.asarray(nested.values[codes] * own + nested.offset, np.float32)


@dataclass(frozen=True)
class _EightBits:
    """Integers of rows, and the largest magnitude of each row."""

    codes: Tensor
    largest: Tensor

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        largest = finite(self.largest, read_elements(self.largest, *rows))
        codes = read_panel(self.codes, rows, columns).astype(np.float32)
        return codes * largest[:, None] * _PER_127


def find_4bit_weights(stored: Stored) -> Iterator[QuantizedWeight]:
    """Yield the weights that are stored as NF4 or FP4.

    Raises:
        CheckpointError: A part is missing or of another shape, or a state cannot be read.
    """
    states = {m[1]: m for m in map(_STATE.fullmatch, stored.tensors) if m is not None}
    for name in stored.tensors:
        part = _PART.fullmatch(name)
        if part is not None and part[1] not in states and part[1] in stored.tensors:
            msg = f"tensor {name!r} of the base has no {part[1]}.quant_state.bitsandbytes__nf4"
            raise damaged(msg)
    for name, match in states.items():
        yield _four_bits(stored, name, match)


def _four_bits(stored: Stored, name: str, match: re.Match[str]) -> QuantizedWeight:
    state = _read_state(stored.tensors[match[0]])
    if state.quant_type != match[2]:
        msg = f"tensor {match[0]!r} of the base says quant_type {state.quant_type!r}"
        raise damaged(msg)
    shape = tuple(state.shape)
    if not is_shape(shape):
        msg = f"tensor {match[0]!r} of the base says the shape {list(shape)}"
        raise damaged(msg)
    count = prod(shape)
    blocks = -(-count // state.blocksize)
    codes = _packed_codes(stored, name, -(-count // 2))
    table = stored.part(f"{name}.quant_map", "float32", (_CODES,))
    parts = [stored.tensors[match[0]], codes, table]
    nested = None
    own = stored.all_or_none(f"{name}.nested_absmax", f"{name}.nested_quant_map")
    if own is not None:
        scales_name, values_name = own
        if state.nested_blocksize is None or state.nested_offset is None:
            msg = f"tensor {match[0]!r} of the base has no nested_blocksize or no nested_offset"
            raise damaged(msg)
        absmax = stored.part(f"{name}.absmax", "uint8", (blocks,))
        scales = stored.part(scales_name, "float32", (-(-blocks // state.nested_blocksize),))
        values = stored.part(values_name, "float32", (_NESTED_CODES,))
        parts += [scales, values]
        offset = np.float32(state.nested_offset)
        nested = _Nested(scales, finite(values, read_all(values)), state.nested_blocksize, offset)
    else:
        absmax = stored.part(f"{name}.absmax", "float32", (blocks,))
    codec = FourBitCodec(
        BytesTensor(codes),
        absmax,
        finite(table, read_all(table)),
        state.blocksize,
        shape[-1],
        nested,
    )
    form = Form(METHOD, state.quant_type, 4, state.blocksize)
    return QuantizedWeight(name, by_name(state.dtype), shape, form, (*parts, absmax), codec)


def _packed_codes(stored: Stored, name: str, count_bytes: int) -> Tensor:
    """Return packed codes: bytes, or the same bytes in floats (``bnb_4bit_quant_storage``)."""
    given = stored.tensors.get(name)
    if given is None or given.dtype.name not in _STORAGE:
        return stored.part(name, "uint8", (count_bytes, 1))
    size = given.dtype.itemsize_bytes
    return stored.part(name, given.dtype.name, (-(-count_bytes // size), 1))


def _read_state(tensor: Tensor) -> BlockState:
    """Return the settings that a tensor of bytes holds as JSON."""
    if tensor.dtype.name != "uint8" or not 0 < prod(tensor.shape) <= _STATE_LIMIT_BYTES:
        msg = f"tensor {tensor.name!r} of the base is {tensor.dtype.name} {list(tensor.shape)}"
        raise damaged(f"{msg}; the JSON of a state is expected")
    try:
        return parse_state(read_all(tensor).tobytes())
    except (ValueError, RecursionError) as error:
        msg = f"tensor {tensor.name!r} of the base is no state of a weight: {error}"
        raise damaged(msg) from error


def find_8bit_weights(stored: Stored) -> Iterator[QuantizedWeight]:
    """Yield the weights that are stored as int8 with the largest magnitude of each row.

    Raises:
        CheckpointError: A part is missing or of another shape.
    """
    for name in stored.tensors:
        if not name.endswith(".SCB"):
            continue
        module = name.removesuffix(".SCB")
        codes = stored.part(f"{module}.weight", "int8")
        if len(codes.shape) != _MATRIX or 0 in codes.shape:
            msg = f"tensor {codes.name!r} of the base has the shape {list(codes.shape)}"
            raise damaged(f"{msg}; int8 weights are matrices")
        largest = stored.part(name, "float32", codes.shape[:1])
        layout = stored.tensors.get(f"{module}.weight_format")
        if layout is not None and bool(read_all(layout).any()):
            msg = f"tensor {layout.name!r} of the base is not 0: its rows are not in order"
            raise damaged(msg)
        parts = (codes, largest, *([] if layout is None else [layout]))
        dtype = stored.dtype or DTYPES["float16"]
        form = Form(METHOD, "int8", 8)
        yield QuantizedWeight(
            codes.name, dtype, codes.shape, form, parts, _EightBits(codes, largest)
        )
