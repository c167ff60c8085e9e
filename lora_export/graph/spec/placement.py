"""A graph pointed at the files that hold the values of its initializers.

Most graphs are changed in their bytes (`placed_bytes`); what needs more is parsed, and onnx is
imported for that only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.spec.placed_bytes import placed_in_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.graph.spec.template import Placement

__all__ = ["place", "place_pair"]


def place(
    onnx_bytes: bytes, placements: Mapping[str, Placement], *, output_width: int | None = None
) -> bytes:
    """Return the graph with its initializers pointed at `placements`; the same input, same bytes.

    Args:
        onnx_bytes: A graph whose parameters have external data.
        placements: Where each value lies; initializers that are not named keep their place.
        output_width: A new size for the output's last axis, where the head changed its width.

    Raises:
        ExportDirectoryError: The graph cannot be parsed, or lacks one of the initializers.
    """
    placed, missing = _placed(onnx_bytes, placements, output_width)
    _refuse_unknown(missing)
    return placed


def place_pair(
    decoder: bytes,
    encoder: bytes,
    placements: Mapping[str, Placement],
    *,
    output_width: int | None = None,
) -> tuple[bytes, bytes]:
    """Return both graphs of an encoder-decoder, as `place` does, each with what it reads.

    `output_width` is the decoder's.

    Raises:
        ExportDirectoryError: A graph cannot be parsed, or neither has one of the initializers.
    """
    (first, in_first), (second, in_second) = (
        _placed(graph, placements, width)
        for graph, width in ((decoder, output_width), (encoder, None))
    )
    _refuse_unknown(in_first & in_second)
    return first, second


def _refuse_unknown(missing: set[str]) -> None:
    if missing:
        msg = f"the graph has no initializer {min(missing)!r}"
        raise ExportDirectoryError(msg, hint="Graph and manifest are not of one export.")


def _placed(
    onnx_bytes: bytes, placements: Mapping[str, Placement], output_width: int | None
) -> tuple[bytes, set[str]]:
    """Return the graph with its initializers pointed at `placements`, and those it lacks."""
    found = placed_in_bytes(onnx_bytes, placements, output_width)
    if found is not None:
        return found
    from lora_export.graph.spec.placed_model import placed_in_model

    return placed_in_model(onnx_bytes, placements, output_width)
