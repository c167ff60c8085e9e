"""Layers that a model repeats: found, and left out of the trace.

Tracing costs time by the layer, and the layers of a transformer are one layer many times, or a few
kinds of layers that take turns. Of a list of such modules these are traced:

    1. the first and the last, which may be like no other;
    2. of the others, the first and the last of each kind;
    3. of each pair of kinds that follow each other, two that do.

`lora_export.graph.optimize.replicate_layers` puts the others back into the traced graph. Layers are
of a kind if they are equal but for their parameters' values, attribute by attribute and submodule
by submodule: the same classes, the same settings, the same shapes, the same values of buffers; only
an integer that is the layer's own index may differ (``layer_idx``). Where a config says something
layer by layer
(``layer_types``), it says the same of a kind; the lists are cut down with the layers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_export.core.torch_private import TORCH_TABLES
from lora_export.graph.spec.repeat import LEAST_LEFT_OUT, Repeat, layers_to_trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["leave_out_repeats"]

_LISTED_BY_LAYER: Final = "layer"
"""What the name of a setting contains that lists something layer by layer."""


def leave_out_repeats(model: torch.nn.Module) -> tuple[Repeat, ...]:
    """Cut every list of layers in `model` down to what has to be traced; mutates `model`.

    Args:
        model: The model, as built from its config; the config's lists by layer are cut too.
    """
    found: list[Repeat] = []
    listed: dict[tuple[int, str], tuple[Any, tuple[int, ...]]] = {}
    for path, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.ModuleList):
            continue
        if any(path.startswith(f"{outer.path}.") for outer in found):
            continue
        lists = list(_lists(_owners(model, path), len(module)))
        if any(
            isinstance(holder, torch.nn.Module) or _LISTED_BY_LAYER not in name
            for holder, name, _ in lists
        ):
            continue  # what it lists is not known
        kinds = _kinds(list(module), [values for _, _, values in lists])
        kept = layers_to_trace(kinds)
        if len(kinds) - len(kept) < LEAST_LEFT_OUT:
            continue
        found.append(Repeat(path, kinds, kept))
        for holder, name, _ in lists:
            if listed.setdefault((id(holder), name), (holder, kept))[1] != kept:
                return ()  # two lists of modules share it
    for repeat in found:
        owner, _, name = repeat.path.rpartition(".")
        layers = getattr(model.get_submodule(owner), name)
        setattr(
            model.get_submodule(owner), name, torch.nn.ModuleList(layers[i] for i in repeat.kept)
        )
    for (_, name), (holder, kept) in listed.items():
        setattr(holder, name, [getattr(holder, name)[number] for number in kept])
    return tuple(found)


def _owners(model: torch.nn.Module, path: str) -> list[torch.nn.Module]:
    """Return the modules that the list at `path` is part of, `model` first."""
    parts = path.split(".")[:-1]
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]


def _lists(
    owners: Sequence[torch.nn.Module], count: int
) -> Iterator[tuple[Any, str, Sequence[Any]]]:
    """Yield the lists of `count` entries that differ, of `owners` and of their configs."""
    configs = {id(each.config): each.config for each in owners if hasattr(each, "config")}
    for holder in (*owners, *configs.values()):
        for name, value in vars(holder).items():
            if (
                isinstance(value, (list, tuple))
                and len(value) == count
                and len(set(map(str, value))) > 1
            ):
                yield holder, name, value


def _kinds(layers: Sequence[torch.nn.Module], lists: Sequence[Sequence[Any]]) -> tuple[int, ...]:
    """Return of each layer the number of the first one that is like it; the first is like none."""
    kinds: list[int] = []
    ends: dict[int, tuple[int, int]] = {}  # the first of a kind, and the last so far

    def alike(one: int, other: int) -> bool:
        listed = all(str(each[one]) == str(each[other]) for each in lists)
        return listed and _same(layers[one], layers[other], (one, other))

    for number in range(len(layers)):
        known = (
            kind for kind, pair in ends.items() if all(alike(each, number) for each in set(pair))
        )
        kind = next(known, number)
        kinds.append(kind)
        if number:
            ends[kind] = (kind, number)
    return tuple(kinds)


def _same(one: Any, other: Any, numbers: tuple[int, int]) -> bool:
    """Whether `one` and `other`, of the layers with `numbers`, are equal, as defined above."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.nn.Module):
        return _same_modules(one, other, numbers)
    if isinstance(one, torch.Tensor):
        return _same_tensors(one, other)
    if isinstance(one, bool) or not isinstance(one, int):
        return _same_values(one, other, numbers)
    return one == other or (one, other) == numbers


def _same_modules(one: torch.nn.Module, other: torch.nn.Module, numbers: tuple[int, int]) -> bool:
    settings, other_settings = vars(one), vars(other)
    if settings.keys() != other_settings.keys():
        return False
    return all(
        _same(value, other_settings[name], numbers)
        for name, value in settings.items()
        if name not in TORCH_TABLES
    ) and all(_same(settings[name], other_settings[name], numbers) for name in sorted(TORCH_TABLES))


def _same_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if isinstance(one, torch.nn.Parameter):
        return True  # a value that the checkpoint brings
    return one.device.type != "meta" and torch.equal(one, other)


def _same_values(one: Any, other: Any, numbers: tuple[int, int]) -> bool:
    if isinstance(one, functools.partial):
        return one.func == other.func and all(
            _same(getattr(one, name), getattr(other, name), numbers)
            for name in ("args", "keywords")
        )
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(
            _same(value, other[key], numbers) for key, value in one.items()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(
            _same(a, b, numbers) for a, b in zip(one, other, strict=True)
        )
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):
        return False
