"""Adapters of other formats than PEFT's, written by hand, and what they add to each weight."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from lora_export.core.tensors import read_all

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter, LowRank

__all__ = ["delta", "deltas", "factors", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Any], config: Any = None) -> Path:
    """Write a safetensors file, and `config` beside it as ``adapter_config.json``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    if config is not None:
        (path.parent / "adapter_config.json").write_text(json.dumps(config))
    return path


def factors(inputs: int, outputs: int, r: int = 2, *, seed: int = 0) -> tuple[Any, Any]:
    """Return random A ``[r, inputs]`` and B ``[outputs, r]``, float32."""
    random = np.random.default_rng(seed)
    a = random.standard_normal((r, inputs)).astype(np.float32)
    return a, random.standard_normal((outputs, r)).astype(np.float32)


def delta(update: LowRank) -> Any:
    """Return ``s·B A`` in float64."""
    b, a = (read_all(each).astype(np.float64) for each in (update.b, update.a))
    return update.scale * (b @ a)


def deltas(adapter: Adapter) -> dict[str, Any]:
    """Return what an adapter adds, by module."""
    return {update.module: delta(update) for update in adapter.low_rank}
