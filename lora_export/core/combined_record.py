"""The record of an adapter that was combined from several."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from lora_export.core.record_values import RECORD_CONFIG, Sha256

__all__ = ["CombinedRecord", "PartRecord"]


class _Record(BaseModel):
    model_config = RECORD_CONFIG


class PartRecord(_Record):
    """One of the adapters that a combined one was made of."""

    name: str
    source: str
    format: str
    sha256: Sha256
    weight: float
    scale: float
    dropped: list[str] = []
    alpha: float | None = None
    enable_lora: list[bool] | None = None


class CombinedRecord(_Record):
    """The record of a combination of adapters; enough to repeat it.

    `head_from` names the part whose head, labels and tokenizer the result has.
    """

    method: str
    density: float | None = None
    rank: int | None = None
    majority_sign_method: Literal["total", "frequency"] = "total"
    seed: int = 0
    head_from: str | None = None
    parts: list[PartRecord]
