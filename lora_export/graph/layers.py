"""Layers that a model repeats: found, and left out of the model that is traced.

Tracing costs time by the layer, and the layers of a transformer are one layer many times. A list
of modules whose items are equal but for their parameters' values is cut down to four: the first
two and the last two. `lora_export.graph.stamp` puts the others back into the traced graph.

Equal means, attribute by attribute and submodule by submodule: the same classes, the same
settings, the same shapes, the same values of buffers; only an integer that is the layer's own
index may differ (``layer_idx``). A config that lists something layer by layer (``layer_types``)
must list the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

__all__ = ["KEPT", "Repeat", "leave_out_repeats"]

KEPT: Final = 4
"""Layers that are traced: between the second and the third, two neighbours can be compared."""

_LEAST: Final = 6
_TORCH_TABLES: Final = frozenset({"_parameters", "_buffers", "_modules"})


@dataclass(frozen=True)
class Repeat:
    """A list of equal layers.

    Attributes:
        path: The list's name in the model (``roberta.encoder.layer``).
        count: How many layers the model has; `KEPT` of them are traced.
    """

    path: str
    count: int


def leave_out_repeats(model: torch.nn.Module, config: Any) -> tuple[Repeat, ...]:
    """Cut every list of equal layers in `model` down to `KEPT`; mutates `model`.

    Args:
        model: The model, as built from its config.
        config: The config, whose lists by layer are looked at.
    """
    found: list[Repeat] = []
    for path, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.ModuleList) or len(module) < _LEAST:
            continue
        if any(path.startswith(f"{outer.path}.") for outer in found):
            continue
        if not _uniform(config, len(module)):
            continue
        layers = list(module)
        if all(_same(layers[1], layer, index) for index, layer in enumerate(layers) if index > 1):
            found.append(Repeat(path, len(layers)))
    for repeat in found:
        owner, _, name = repeat.path.rpartition(".")
        layers = getattr(model.get_submodule(owner), name)
        setattr(model.get_submodule(owner), name, layers[:2] + layers[-2:])
    return tuple(found)


def _uniform(config: Any, count: int) -> bool:
    """Whether no list of `count` entries in `config` says something different by layer."""
    for value in vars(config).values():
        if (
            isinstance(value, (list, tuple))
            and len(value) == count
            and len(set(map(str, value))) > 1
        ):
            return False
    return True


def _same(one: Any, other: Any, index: int) -> bool:
    """Whether `one` of layer 1 and `other` of layer `index` are equal, as defined above."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.nn.Module):
        return _same_modules(one, other, index)
    if isinstance(one, torch.Tensor):
        return _same_tensors(one, other)
    if isinstance(one, bool) or not isinstance(one, int):
        return _same_values(one, other, index)
    return one == other or (one == 1 and other == index)


def _same_modules(one: torch.nn.Module, other: torch.nn.Module, index: int) -> bool:
    settings, other_settings = vars(one), vars(other)
    if settings.keys() != other_settings.keys():
        return False
    return all(
        _same(value, other_settings[name], index)
        for name, value in settings.items()
        if name not in _TORCH_TABLES
    ) and all(_same(settings[name], other_settings[name], index) for name in sorted(_TORCH_TABLES))


def _same_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if isinstance(one, torch.nn.Parameter):
        return True  # a value that the checkpoint brings
    return one.device.type != "meta" and torch.equal(one, other)


def _same_values(one: Any, other: Any, index: int) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(
            _same(value, other[key], index) for key, value in one.items()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(
            _same(a, b, index) for a, b in zip(one, other, strict=True)
        )
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):
        return False
