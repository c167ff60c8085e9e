"""A graph without weights, as it is cached and as exports are made from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lora_export.core.name_conversions import Conversion
from lora_export.core.parameters import Parameter
from lora_export.core.quantization import Quantized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["GraphTemplate", "Placement", "Requirement", "TemplateOrigin"]


class Requirement(Protocol):
    """A check of a model's parameters before it is traced."""

    def __call__(
        self, parameters: Sequence[Parameter], prefix: str, conversions: Sequence[Conversion]
    ) -> None:
        """Raise where they are not those of the checkpoint.

        Args:
            parameters: Every parameter of the model, by its own names.
            prefix: ``base_model_prefix`` with its dot, or ``""``.
            conversions: How transformers loads a checkpoint of the model.
        """


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
