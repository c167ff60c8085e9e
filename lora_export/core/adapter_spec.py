"""One adapter as a user describes it: a line of a recipe, or what a function is given."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AdapterSpec"]


class AdapterSpec(BaseModel):
    """One adapter: the name it gets in the export, where it is, what of it is left out.

    Attributes:
        name: Its name in the export; that of its folder or file without one.
        source: Where it is.
        subfolder: The folder below `source` that holds it, where `source` holds several.
        scale: Multiplies its low-rank updates; what it carries whole stays as it is.
        drop: Patterns of tensors that are left out.
        labels: The names of its classes.
        format: Its format, where that is not to be detected.
        alpha: The alpha that it was trained with, where its format does not record it.
        enable_lora: Which blocks a ``MergedLinear`` of loralib adapts.
        as_rank: The rank of the LoRA that is made of an adapter of another method, for graphs that
            several adapters share; of no use to LoRA.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    name: str | None = None
    source: str
    subfolder: str | None = None
    scale: float = Field(default=1.0, allow_inf_nan=False)
    drop: list[str] = []
    labels: list[str] | None = None
    format: str | None = None
    alpha: float | None = Field(default=None, allow_inf_nan=False)
    enable_lora: list[bool] | None = None
    as_rank: int | None = Field(default=None, ge=1, le=1 << 16)
