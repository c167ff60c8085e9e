"""A graph without weights, as it is cached and as exports are made from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lora_export.core.errors import ExportDirectoryError
from lora_export.core.name_conversions import Conversion
from lora_export.core.parameters import Parameter
from lora_export.core.quantization import Quantized, stored_name
from lora_export.graph.spec.external_values import place_outside
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.output_width import set_output_width

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GraphTemplate", "Placement", "TemplateOrigin", "place", "place_pair"]


@dataclass(frozen=True)
class TemplateOrigin:
    """The template that ships with the package and that a graph was made from.

    Attributes:
        name: Its file in the package's data.
        sha256: The hash of that file.
        transformers: The version of transformers that it was traced with.
    """

    name: str
    sha256: str
    transformers: str


@dataclass(frozen=True)
class GraphTemplate:
    """A folded graph whose parameters have names, dtypes and shapes, and no values.

    Attributes:
        onnx_bytes: The model; every parameter is an initializer with external data.
        parameters: The parameters it reads; those of the encoder's graph too.
        prefix: ``base_model_prefix`` with its dot, or ``""``.
        model_class: The class in transformers that it was traced from.
        opset: The ONNX opset.
        encoder_bytes: Of an encoder-decoder: the encoder's graph; `onnx_bytes` is the decoder's.
        conversions: How transformers loads a checkpoint of the model.
        origin: The shipped template that it was made from; None for a graph that was traced.
    """

    onnx_bytes: bytes = field(repr=False)
    parameters: tuple[Parameter, ...] = field(repr=False)
    prefix: str
    model_class: str
    opset: int
    encoder_bytes: bytes | None = field(default=None, repr=False)
    conversions: tuple[Conversion, ...] = field(default=(), repr=False)
    origin: TemplateOrigin | None = None

    @property
    def graphs(self) -> tuple[bytes, bytes | None]:
        """The graph, and that of the encoder where there is one."""
        return self.onnx_bytes, self.encoder_bytes

    def describe(self) -> dict[str, Any]:
        """Return everything but the graph, as JSON values."""
        return {
            "parameters": [asdict(parameter) for parameter in self.parameters],
            "prefix": self.prefix,
            "model_class": self.model_class,
            "opset": self.opset,
            "conversions": [asdict(conversion) for conversion in self.conversions],
        }

    @classmethod
    def from_description(
        cls, onnx_bytes: bytes, table: Mapping[str, Any], encoder_bytes: bytes | None = None
    ) -> GraphTemplate:
        """Rebuild the template from `describe`'s table."""
        parameters = tuple(
            Parameter(
                **{
                    **row,
                    "shape": tuple(row["shape"]),
                    "aliases": tuple(row["aliases"]),
                    "quantized": Quantized(**row["quantized"]) if row.get("quantized") else None,
                }
            )
            for row in table["parameters"]
        )
        conversions = tuple(
            Conversion(
                **{**row, "targets": tuple(row["targets"]), "operations": tuple(row["operations"])}
            )
            for row in table["conversions"]
        )
        return cls(
            onnx_bytes,
            parameters,
            table["prefix"],
            table["model_class"],
            table["opset"],
            encoder_bytes=encoder_bytes,
            conversions=conversions,
        )


@dataclass(frozen=True)
class Placement:
    """The file and position of an initializer's value.

    Attributes:
        location: Path of the weight file, relative to the graph's folder.
        offset_bytes: Absolute offset in that file.
        length_bytes: Bytes that the value takes.
        shape: A new shape, where the value does not have the template's (a head of another width).
    """

    location: str
    offset_bytes: int
    length_bytes: int
    shape: tuple[int, ...] | None = None


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
