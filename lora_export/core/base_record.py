"""The base of an export in its manifest: the checkpoint behind every graph of the directory."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from lora_export.core.name_conversions import Conversion
from lora_export.core.quantization_record import QuantizationRecord, StoredForm, TrainingBase
from lora_export.core.record_values import RECORD_CONFIG, Sha256

__all__ = ["BaseRecord", "GraphSource", "TemplateRecord", "TieRecord"]


class _Record(BaseModel):
    model_config = RECORD_CONFIG


class GraphSource(_Record):
    """The graph that the user brought, in place of one that was traced."""

    source: str
    sha256: Sha256


class TemplateRecord(_Record):
    """The template that ships with lora-export and that the graphs were made from.

    Attributes:
        name: Its file in the package's data.
        sha256: The hash of that file.
        transformers: The version of transformers that it was traced with.
    """

    name: str
    sha256: Sha256
    transformers: str


class TieRecord(_Record):
    """One weight of the base under several names, which the graphs hold apart.

    Attributes:
        names: Its names in the model, also those that no graph reads.
        input: The one of the model's input embedding; None where it is none.
    """

    names: list[str]
    input: str | None = None


class BaseRecord(_Record):
    """The base checkpoint behind every graph of the directory.

    Attributes:
        conversions: How transformers loads a checkpoint of the model, where it is not as it is.
        graph: Where the base graph comes from; None where it was traced.
        template: The shipped template of the graphs; None where they were traced, or the user's.
        untied: Parameters that the checkpoint ties and the graphs hold apart, because an adapter
            changes one of them only.
        ties: All names of these weights.
        cache: Whether keys and values of past positions are inputs and outputs of the graphs.
        cache_length: The positions of a static cache; None for one that grows.
        logits: ``last`` where the graphs return those of the last position only.
        pooling: What makes sentence embeddings of token states (``mean, normalize``).
        quantization: What was quantized, and how; None where nothing was.
        carried: How many weights have the integers that the checkpoint stores, unchanged; None
            where none has.
        trained_on: The quantized base of the adapters, where this is the original of it.
        stored_quantization: The form of the checkpoint's own weights, where they are quantized.
    """

    source: str
    model_type: str
    model_class: str
    task: str
    dtype: str
    fingerprint: Sha256
    prefix: str = ""
    labels: list[str] | None = None
    untied: list[str] = []
    ties: list[TieRecord] = []
    cache: bool = False
    cache_length: int | None = Field(default=None, ge=1)
    logits: Literal["all", "last"] = "all"
    pooling: str | None = None
    graph: GraphSource | None = None
    template: TemplateRecord | None = None
    conversions: list[Conversion] = []
    quantization: QuantizationRecord | None = None
    stored_quantization: StoredForm | None = None
    carried: int | None = Field(default=None, ge=1)
    trained_on: TrainingBase | None = None
