"""PEFT's layers of methods other than LoRA in the reference: loaded completely, and disabled."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.adapters.formats.peft import read_tensors
from lora_export.core.dtypes import to_float32
from lora_export.core.errors import AdapterError
from lora_export.core.tensors import read_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["disabled_layers", "require_every_tensor"]

_NAME: Final = ".default"


@contextlib.contextmanager
def disabled_layers(model: Any) -> Iterator[None]:
    """Let PEFT's layers compute what the base does until the block ends; saved modules stay."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def require_every_tensor(wrapped: Any, folder: Path, source: str) -> None:
    """Require that the reference holds each tensor of the adapter's file; PEFT only warns.

    Raises:
        AdapterError: It does not hold one.
    """
    held: dict[str, list[Any]] = {}
    for key, value in wrapped.state_dict().items():
        held.setdefault(_plain(key), []).append(value)
    for key, tensor in read_tensors(folder, source).items():
        expected = to_float32(read_all(tensor))
        values = (value.float().numpy() for value in held.get(_plain(key), []))
        if not any(np.array_equal(value, expected) for value in values):
            msg = f"PEFT did not load {key!r} of adapter {source!r}"
            raise AdapterError(msg, hint="Is --task the task that it was trained for?")


def _plain(key: str) -> str:
    """Return a name without what PEFT's wrappers and the adapter's own name add to it."""
    for wrapper in (".base_layer", ".modules_to_save", ".token_adapter"):
        key = key.replace(wrapper, "")
    return key.removesuffix(_NAME).replace(f"{_NAME}.", ".")
