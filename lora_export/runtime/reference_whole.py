"""An update of whole tensors in the reference: put into transformers' model, and taken out."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.dtypes import to_float32
from lora_export.core.errors import AdapterError
from lora_export.core.tensors import read_all
from lora_export.runtime.reference_files import to_reference_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.adapters.canonical import Adapter

__all__ = ["WholeTensors", "load_whole", "without_whole"]


@dataclass(frozen=True)
class WholeTensors:
    """Tensors of a model that were replaced.

    Attributes:
        names: Their names.
        tensors: The model's own tensors.
        base: The base's values.
    """

    names: tuple[str, ...]
    tensors: tuple[Any, ...] = field(repr=False)
    base: tuple[Any, ...] = field(repr=False)


def load_whole(model: Any, adapter: Adapter) -> WholeTensors:
    """Put the tensors of `adapter` into `model`, in float32.

    Raises:
        AdapterError: The model has no tensor of a name, or of its shape, or has one tensor for two
            values that differ.
    """
    held = model.state_dict(keep_vars=True)
    named = to_reference_names(adapter, held, model.base_model_prefix)
    targets: dict[int, tuple[str, Any, Any]] = {}
    for item in named.saved:
        target = held.get(item.parameter)
        values = _values(item.tensor, target)
        if target is None or values is None:
            msg = f"transformers' model has no tensor {item.parameter!r} of this shape"
            raise AdapterError(msg, hint="Without a reference, use --no-verify.")
        known = targets.setdefault(id(target), (item.parameter, target, values))
        if known[2] is not values and not bool((known[2] == values).all()):
            msg = f"{known[0]!r} and {item.parameter!r} are one tensor of the model, and differ"
            raise AdapterError(msg, hint="Without a reference, use --no-verify.")
    rows = tuple(targets.values())
    base = tuple(target.data.clone() for _, target, _ in rows)
    for _, target, values in rows:
        target.data.copy_(values)
    return WholeTensors(tuple(name for name, _, _ in rows), tuple(t for _, t, _ in rows), base)


def _values(tensor: Any, target: Any) -> Any:
    import torch

    array = read_all(tensor)
    floats = to_float32(array) if tensor.dtype.floating else array
    values = torch.from_numpy(np.ascontiguousarray(floats))
    return values if target is not None and values.shape == target.shape else None


@contextlib.contextmanager
def without_whole(replaced: WholeTensors) -> Iterator[None]:
    """Put the base's values back until the block ends."""
    own = [tensor.data.clone() for tensor in replaced.tensors]
    for tensor, value in zip(replaced.tensors, replaced.base, strict=True):
        tensor.data.copy_(value)
    try:
        yield
    finally:
        for tensor, value in zip(replaced.tensors, own, strict=True):
            tensor.data.copy_(value)
