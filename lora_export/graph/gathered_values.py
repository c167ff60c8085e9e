"""The values of a graph, gathered from several weight files into one file of the graph's own.

    graph of an export   weights/base.safetensors, weights/<adapter>.safetensors, adapters/…
    gathered             one file that holds each value once, at an aligned offset

Only the graph is rewritten here; the ranges of bytes that make up the new file are returned, so
that they can be copied in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import onnx

from lora_export.graph.spec.external_values import SideBySide, external_source, place_outside
from lora_export.graph.spec.onnx_file import parse_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["GatheredGraph", "Piece", "gather_values"]

_EXTERNAL: Final = onnx.TensorProto.EXTERNAL
_ALIGNMENT_BYTES: Final = 64
_PAGE_BYTES: Final = 4096
"""Large values begin on a page, so that a runtime can map them."""
_LARGE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A part of the new file.

    Attributes:
        content: The ranges of weight files that it is made of: one, or several side by side.
        start_bytes: Where it begins in the new file.
    """

    content: SideBySide
    start_bytes: int

    @property
    def length_bytes(self) -> int:
        """Its length."""
        return self.content.length_bytes


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


def gather_values(
    onnx_bytes: bytes, data_name: str, packed: Mapping[str, SideBySide] | None = None
) -> GatheredGraph:
    """Return the graph with all values that lie in other files pointed at one file.

    Values that several tensors share (a weight with two readers) are in it once. The same graph
    gives the same bytes.

    Args:
        onnx_bytes: The graph.
        data_name: The name of the new file, which lies beside the graph.
        packed: What initializers are made of that lie in no file as they are, by name.

    Raises:
        ExportDirectoryError: The graph cannot be parsed, or a place in it is not a range of bytes.
    """
    model = parse_onnx(onnx_bytes)
    pieces: dict[SideBySide, Piece] = {}
    end = 0
    for tensor in _tensors(model.graph):
        if tensor.data_location != _EXTERNAL:
            continue
        content = (packed or {}).get(tensor.name) or SideBySide((external_source(tensor),), 1)
        piece = pieces.get(content)
        if piece is None:
            start = _aligned(end, content.length_bytes)
            piece = pieces[content] = Piece(content, start)
            end = start + content.length_bytes
        place_outside(tensor, data_name, piece.start_bytes, piece.length_bytes)
    written: bytes = model.SerializeToString(deterministic=True)
    return GatheredGraph(written, tuple(pieces.values()), end)


def _aligned(position: int, length_bytes: int) -> int:
    step = _PAGE_BYTES if length_bytes >= _LARGE_BYTES else _ALIGNMENT_BYTES
    return -(-position // step) * step


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
