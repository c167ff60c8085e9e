"""The architectures that have templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.graph.templates.decoders import DECODERS
from lora_export.graph.templates.disentangled import DISENTANGLED
from lora_export.graph.templates.encoders import ENCODERS
from lora_export.graph.templates.vision import VISION

if TYPE_CHECKING:
    from lora_export.graph.templates.family import Family

__all__ = ["FAMILIES"]

FAMILIES: Final[dict[str, Family]] = {
    row.model_type: row for row in (*ENCODERS, *DECODERS, *DISENTANGLED, *VISION)
}
