"""The files of a graph: ``NAME.onnx``, or one each for an encoder and a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.core.files import resolve_inside, write_synced
from lora_export.core.manifest import GraphFile
from lora_export.graph.spec.placement import place, place_pair
from lora_export.graph.spec.template import Placement
from lora_export.ondevice.external_data import read_graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.manifest import GraphRecord
    from lora_export.weights.stream import Entry, Written

__all__ = ["WrittenGraph", "placements_of", "possible_files", "read_graphs", "write_graphs"]


@dataclass(frozen=True)
class WrittenGraph:
    """A written graph, as the manifest names it.

    Attributes:
        onnx: The graph, or the decoder's.
        encoder: The encoder's graph, where there is one.
    """

    onnx: GraphFile
    encoder: GraphFile | None = None

    @property
    def files(self) -> dict[str, str]:
        """The SHA-256 of each file."""
        return {each.onnx: each.sha256 for each in (self.onnx, self.encoder) if each is not None}


def placements_of(file: str, entries: Sequence[Entry], written: Written) -> dict[str, Placement]:
    """Return where each value of a weight file lies, with its shape in a graph.

    Args:
        file: The file, relative to the export directory.
        entries: Its tensors.
        written: The file as it was written.
    """
    return {
        each.name: Placement(file, *written.offsets[each.name], each.graph_shape or each.shape)
        for each in entries
    }


def possible_files(name: str) -> tuple[str, ...]:
    """Return the files that the graph `name` may have."""
    return (f"{name}.onnx", f"decoder.{name}.onnx", f"encoder.{name}.onnx")


def read_graphs(export_dir: Path, record: GraphRecord) -> tuple[bytes, bytes | None]:
    """Return the graph, or the decoder's and the encoder's."""
    encoder = record.encoder
    return (
        read_graph(resolve_inside(export_dir, record.onnx)),
        None if encoder is None else read_graph(resolve_inside(export_dir, encoder.onnx)),
    )


def write_graphs(
    folder: Path,
    name: str,
    graphs: tuple[bytes, bytes | None],
    placements: Mapping[str, Placement],
    *,
    output_width: int | None = None,
) -> WrittenGraph:
    """Point a graph, or a decoder and its encoder, at `placements`, and write it into `folder`.

    Args:
        folder: Where the files go.
        name: ``base``, or an adapter's name.
        graphs: The graph and None, or the decoder's and the encoder's.
        placements: Where values lie.
        output_width: A new size for the last axis of the output, of an encoder-decoder that of
            the decoder.

    Raises:
        ExportDirectoryError: A graph is damaged, or has no such initializer.
        StorageError: The disk refuses.
    """
    first, encoder = graphs
    single, decoder_file, encoder_file = possible_files(name)
    if encoder is None:
        placed = place(first, placements, output_width=output_width)
        digest = write_synced(folder / single, placed)
        return WrittenGraph(GraphFile(onnx=single, sha256=digest))
    pair = place_pair(first, encoder, placements, output_width=output_width)
    written = [
        GraphFile(onnx=file, sha256=write_synced(folder / file, graph))
        for file, graph in zip((decoder_file, encoder_file), pair, strict=True)
    ]
    return WrittenGraph(*written)
