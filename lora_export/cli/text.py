"""Plain text for people: aligned rows, the first of many, sizes with units."""

from __future__ import annotations

from lora_export.core.listing import first_few
from lora_export.core.units import size
from lora_export.ondevice.text_table import aligned

__all__ = ["aligned", "first_few", "size"]
