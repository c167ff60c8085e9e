"""PEFT adapters written by hand: any tensors, any settings, damage included."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from lora_export.adapters.formats.peft import read_peft

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter

__all__ = ["WRAPPER", "pair", "read", "write_peft"]

WRAPPER = "base_model.model."


def write_peft(folder: Path, tensors: Mapping[str, Any], **settings: Any) -> Path:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; return `folder`.

    The settings default to a plain LoRA of rank 2 and alpha 4.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "task_type": None, "r": 2, "lora_alpha": 4, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    return folder


def read(folder: Path) -> Adapter:
    """Read a PEFT adapter, under the name ``x``."""
    return read_peft(folder, name="x", source=str(folder))


def pair(
    module: str, inputs: int, outputs: int, r: int = 2, *, seed: int = 0, wrapper: str = WRAPPER
) -> dict[str, np.ndarray]:
    """Return random factors for `module`: A ``[r, inputs]`` and B ``[outputs, r]``."""
    random = np.random.default_rng(seed)
    return {
        f"{wrapper}{module}.lora_A.weight": random.standard_normal((r, inputs)).astype(np.float32),
        f"{wrapper}{module}.lora_B.weight": random.standard_normal((outputs, r)).astype(np.float32),
    }
