"""The values of a graph, gathered from several weight files into one file of the graph's own.

    graph of an export   weights/base.safetensors, weights/<adapter>.safetensors, adapters/…
    gathered             one file that holds each value once, at an aligned offset

Only the graph is rewritten here; the ranges of bytes that make up the new file are returned, so
that they can be copied in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Final

import onnx

from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.spec.external_values import place_outside
from lora_export.graph.spec.onnx_file import parse_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GatheredGraph", "Piece", "gather_values"]

_EXTERNAL: Final = onnx.TensorProto.EXTERNAL
_ALIGNMENT_BYTES: Final = 64
_PAGE_BYTES: Final = 4096
"""Large values begin on a page, so that a runtime can map them."""
_LARGE_BYTES: Final = 1 << 20
_HINT: Final = "The export is damaged: copy or export it again."


@dataclass(frozen=True)
class Piece:
    """A range of bytes of a weight file, and its place in the new file.

    Attributes:
        location: The weight file, relative to the graph's folder.
        offset_bytes: Where the range begins there.
        length_bytes: Its length.
        start_bytes: Where it begins in the new file.
    """

    location: str
    offset_bytes: int
    length_bytes: int
    start_bytes: int


@dataclass(frozen=True)
class GatheredGraph:
    """A graph whose values lie in one file.

    Attributes:
        onnx_bytes: The graph.
        pieces: The parts of the file, in their order; what lies between them is zeros.
        data_bytes: The size of the file; 0 where the graph has no values outside.
    """

    onnx_bytes: bytes = field(repr=False)
    pieces: tuple[Piece, ...] = field(repr=False)
    data_bytes: int


def gather_values(onnx_bytes: bytes, data_name: str) -> GatheredGraph:
    """Return the graph with all values that lie in other files pointed at one file.

    Values that several tensors share (a weight with two readers) are in it once. The same graph
    gives the same bytes.

    Args:
        onnx_bytes: The graph.
        data_name: The name of the new file, which lies beside the graph.

    Raises:
        ExportDirectoryError: The graph cannot be parsed, or a place in it is not a range of bytes.
    """
    model = parse_onnx(onnx_bytes)
    pieces: dict[tuple[str, int, int], Piece] = {}
    end = 0
    for tensor in _tensors(model.graph):
        if tensor.data_location != _EXTERNAL:
            continue
        location, offset, length = _place(tensor)
        piece = pieces.get((location, offset, length))
        if piece is None:
            start = _aligned(end, length)
            piece = pieces[location, offset, length] = Piece(location, offset, length, start)
            end = start + length
        place_outside(tensor, data_name, piece.start_bytes, piece.length_bytes)
    written: bytes = model.SerializeToString(deterministic=True)
    return GatheredGraph(written, tuple(pieces.values()), end)


def _aligned(position: int, length_bytes: int) -> int:
    step = _PAGE_BYTES if length_bytes >= _LARGE_BYTES else _ALIGNMENT_BYTES
    return -(-position // step) * step


def _place(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Return file, offset and length of a value that lies outside its graph."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    texts = entries.get("offset", "0"), entries.get("length", str(_size_bytes(tensor)))
    if "location" not in entries or not all(t.isascii() and t.isdecimal() for t in texts):
        msg = f"the graph does not say where the value of {tensor.name!r} lies"
        raise ExportDirectoryError(msg, hint=_HINT)
    return entries["location"], int(texts[0]), int(texts[1])


def _size_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of a value of a whole number of bytes for each element."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(prod(tensor.dims)) * int(dtype.itemsize)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a graph, and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)
