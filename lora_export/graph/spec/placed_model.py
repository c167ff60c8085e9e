"""A graph parsed, and its initializers pointed at files; heads of another width too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.quantization import stored_name
from lora_export.graph.spec.external_values import place_outside
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.output_width import set_output_width

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.graph.spec.template import Placement

__all__ = ["placed_in_model"]


def placed_in_model(
    onnx_bytes: bytes, placements: Mapping[str, Placement], output_width: int | None
) -> tuple[bytes, set[str]]:
    """Return the graph with its initializers pointed at `placements`, and those it lacks.

    Args:
        onnx_bytes: The graph.
        placements: Where each value lies.
        output_width: A new size for the output's last axis; None keeps it.

    Raises:
        ExportDirectoryError: The graph cannot be parsed.
        UnsupportedError: What follows the head works on its old width only.
    """
    model = parse_onnx(onnx_bytes)
    missing = set(placements)
    resized: dict[str, int] = {}
    for initializer in model.graph.initializer:
        name = initializer.name if initializer.name in placements else stored_name(initializer.name)
        placement = placements.get(name)
        if placement is None:
            continue
        missing.discard(name)
        place_outside(
            initializer, placement.location, placement.offset_bytes, placement.length_bytes
        )
        if placement.shape is not None:
            for old, new in zip(initializer.dims, placement.shape, strict=True):
                if old != new:
                    resized[initializer.name] = old
            initializer.dims[:] = placement.shape
    if output_width is not None:
        before = next(iter(resized.values()), output_width)
        set_output_width(model, before, output_width, resized.keys())
    placed: bytes = model.SerializeToString(deterministic=True)
    return placed, missing
