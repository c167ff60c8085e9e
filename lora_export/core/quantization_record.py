"""Records of quantized parameters in the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, model_validator

from lora_export.core.quantization import BlockSize, SchemeName
from lora_export.core.record_values import RECORD_CONFIG, Sha256

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["QuantizationRecord", "QuantizedRecord", "StoredForm", "TrainingBase"]


class _Record(BaseModel):
    model_config = RECORD_CONFIG


class StoredForm(_Record):
    """The form in which the weights of a quantized base are stored.

    Attributes:
        method: ``bitsandbytes``, ``gptq`` … as ``quant_method`` in its config has it.
        schemes: What is stored: ``nf4``, ``int4``, ``fp8`` …
        bits: The bits of a code, of each kind that there is.
        group_sizes: How many values share a scale; 0 for one scale per row or tensor.
        weights: How many weights are quantized.
    """

    method: str
    schemes: list[str]
    bits: list[int]
    group_sizes: list[int]
    weights: int


class TrainingBase(_Record):
    """The quantized checkpoint that adapters were trained on, where another takes its place.

    Attributes:
        source: Its path or id, relative to what has the record.
        fingerprint: Its fingerprint, over the tensors that its files hold.
        stored: The form of its weights.
    """

    source: str
    fingerprint: Sha256
    stored: StoredForm


class QuantizationRecord(_Record):
    """The quantization of an export, which `add` applies to what it merges.

    Attributes:
        weights: The scheme of the weights of products.
        block_size: How many inputs share a scale; None for the scheme's default.
        method: How integers and scales were found; a later version may have others.
        keep: Patterns of parameters that stayed as they were.
        embeddings: ``int8`` or ``keep``.
        head: The scheme of the layer that gives the logits of tokens; None for that of `weights`.
    """

    weights: SchemeName
    block_size: int | None = Field(default=None, ge=16, le=256)
    method: str = "search"
    keep: list[str] = []
    embeddings: Literal["int8", "keep"] = "int8"
    head: Literal["int4", "int8", "keep"] | None = None


class QuantizedRecord(_Record):
    """The stored form of one parameter: ``value = (integer − zero point) · scale``.

    Of four-bit floats ``VALUES[code] · scale`` (`lora_export.core.four_bit_floats`).

    Attributes:
        scheme: ``int4``, whose integers are packed two to a byte (``U8`` in the file), ``int8``,
            ``nf4`` or ``fp4``, whose codes are packed the other way round, the first in the high
            half.
        bits: 4 or 8.
        block_size: How many values along `axis` share a scale; 0 for one scale per slice.
        axis: The axis of the blocks; without blocks, the one that has the scales.
        scale: The name of the scales.
        zero_point: The name of the zero points, stored as the integers are, with the shape of the
            scales; None where integers are symmetric.
    """

    scheme: SchemeName
    bits: Literal[4, 8]
    block_size: BlockSize
    axis: Literal[0, 1]
    scale: str
    zero_point: str | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.scheme[-1] != str(self.bits):
            msg = f"{self.scheme} has not {self.bits} bits"
            raise ValueError(msg)
        return self
