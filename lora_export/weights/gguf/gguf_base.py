"""A base in GGUF, as the checkpoint of Hugging Face that it was converted from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_export.weights.gguf.gguf_config import (
    derived_config,
    require_agreement,
    require_sizes,
)
from lora_export.weights.gguf.gguf_parts import read_parts
from lora_export.weights.gguf.gguf_weights import gguf_weights, stored_tensors
from lora_export.weights.quantized.formats import QuantizedBase

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["GgufBase", "open_gguf"]


@dataclass(frozen=True)
class GgufBase:
    """A base in GGUF.

    Attributes:
        config: Its ``config.json``: the one beside it, or what its metadata stand for.
        base: Its tensors as they are stored, and as Hugging Face has them.
    """

    config: Mapping[str, Any] = field(repr=False)
    base: QuantizedBase = field(repr=False)


def open_gguf(path: Path, config: Mapping[str, Any] | None) -> GgufBase:
    """Open a GGUF file and the parts that belong to it, reading headers only.

    Args:
        path: The file; of several the first.
        config: The ``config.json`` beside it; None without one.

    Raises:
        CheckpointError: A file is damaged or incomplete, or the config contradicts it.
        UnsupportedError: An architecture, a tensor or a type that is not read, or a file without
            ``config.json`` whose metadata do not say all of it.
        MissingRuntimeError: The ``gguf`` package is not installed.
    """
    parts = read_parts(path)
    if config is None:
        config = derived_config(parts)
    else:
        require_agreement(parts, config)
    require_sizes(parts, config)
    weights = gguf_weights(parts, config)
    return GgufBase(config, QuantizedBase(stored_tensors(parts), config, weights, weights))
