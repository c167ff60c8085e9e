"""An adapter of another method than LoRA as PEFT's folder, under the names that a model has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lora_export.adapters.formats.peft_methods import parse_key
from lora_export.adapters.formats.peft_write import metadata_of
from lora_export.adapters.methods.table import METHODS
from lora_export.adapters.wrappers import PEFT_PREFIX
from lora_export.core.errors import UnsupportedError
from lora_export.core.files import write_synced
from lora_export.core.safetensors_write import write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.tensors import Tensor

__all__ = ["write_method"]

_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def write_method(adapter: Adapter, folder: Path) -> None:
    """Write `adapter`, whose updates are computed, into `folder`, a private one that exists.

    Args:
        adapter: The adapter; its config is kept, with the modules' new names as the targets.
        folder: Where to.

    Raises:
        StorageError: The disk refuses.
        UnsupportedError: The base holds weights fused that the adapter has apart, or apart.
    """
    method = METHODS[adapter.method]
    tensors: dict[str, Tensor] = {}
    targets: set[str] = set()
    for item in adapter.computed:
        module = item.parameter.rpartition(".")[0]
        targets.add(module)
        for tensor in item.tensors:
            key = parse_key(tensor.name, method)
            assert key is not None  # noqa: S101  (the tensor was read under that name)
            _require_same_module(key.module, module)
            owner = "base_model." if key.module is None else f"{PEFT_PREFIX}{module}."
            tensors[f"{owner}{key.name}"] = tensor
    for each in adapter.saved:
        tensors[f"{PEFT_PREFIX}{each.parameter}"] = each.tensor
    write_tensors(folder / "adapter_model.safetensors", tensors, metadata_of(adapter))
    config = _config(adapter.config, targets)
    text = json.dumps(config, indent=2, sort_keys=True)
    write_synced(folder / "adapter_config.json", text.encode() + b"\n")


def _require_same_module(own: str | None, new: str) -> None:
    """Require that a module keeps its own name, whatever the path before it is.

    Raises:
        UnsupportedError: It is a part of a fused one, or the other way round.
    """
    if own is not None and own.rpartition(".")[2] != new.rpartition(".")[2]:
        msg = f"{own!r} is {new!r} in the base, which holds the weight fused or in parts"
        raise UnsupportedError(msg, hint="Verify it on the checkpoint that it was trained on.")


def _config(config: Mapping[str, Any], targets: set[str]) -> dict[str, Any]:
    """Return the config with `targets` as its modules, each by its whole path."""
    kept = {name: value for name, value in config.items() if name not in _TARGETS}
    return {**kept, "target_modules": sorted(targets)}
