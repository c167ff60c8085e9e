"""An adapter's tensors as a pack holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.adapters.formats.packed import pack
from lora_export.adapters.formats.peft import read_peft
from lora_export.core.dtypes import by_name

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

__all__ = ["packed"]


def packed(adapter: Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Return a PEFT adapter's tensors by the names of a swappable graph's inputs."""
    tensors = pack(read_peft(adapter, name="a", source="a"), by_name("float32"))
    return {name: each.values for name, each in tensors.items()}
