"""Modules that an adapter's config targets but its file has no tensors for.

PEFT warns, and leaves such a module as the base has it; so does a merge. The file was trimmed then,
or it is damaged. Only a module of a kind that the file has in other layers is counted: a checkpoint
may hold more than the model does (layers for multi-token prediction, keys and values that later
layers share), and which of the other names are modules of the model is not known here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lora_export.adapters.targeting import target_rule
from lora_export.core.listing import first_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.tensors import Tensor

__all__ = ["describe_missing", "missing_modules"]

_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)")
_WEIGHT: Final = ".weight"
_MATRIX: Final = 2
_PRUNING: Final = "ADALORA"
"""A method that leaves modules out of the file on purpose."""


def missing_modules(
    adapter: Adapter, tensors: Mapping[str, Tensor], config: Mapping[str, object]
) -> tuple[str, ...]:
    """Return the modules that the config targets in some layers, and the file lacks.

    Args:
        adapter: The adapter.
        tensors: The base's tensors by name.
        config: The base's ``config.json``.
    """
    depth = config.get("num_hidden_layers")
    if adapter.format != "peft" or adapter.method == _PRUNING or config.get("num_kv_shared_layers"):
        return ()
    targets = target_rule(adapter.config, adapter.source, tensors.keys())
    if targets is None:
        return ()
    held = {update.module for update in adapter.low_rank if update.name is None}
    held |= {update.parameter.removesuffix(_WEIGHT) for update in adapter.computed}
    kinds = {_NUMBER.sub("*", module) for module in held if _NUMBER.search(module)}
    found: list[str] = []
    for name, tensor in tensors.items():
        module = name.removesuffix(_WEIGHT)
        numbers = _NUMBER.findall(f".{module}")
        if module == name or len(tensor.shape) != _MATRIX or not numbers:
            continue
        if isinstance(depth, int) and int(numbers[0]) >= depth:
            continue
        paths = _paths(module, kinds)
        found += [path for path in paths if path not in held and targets(path)]
    return tuple(found)


def describe_missing(
    adapter: Adapter, tensors: Mapping[str, Tensor], config: Mapping[str, object]
) -> str | None:
    """Return a sentence on the modules that the file lacks; None where it lacks none."""
    missing = missing_modules(adapter, tensors, config)
    if not missing:
        return None
    return (
        f"the config of adapter {adapter.source!r} targets {len(missing)} module(s) for which its "
        f"file has no tensors ({first_names(missing)}): they keep the base's weights; the file may "
        "have been trimmed or damaged"
    )


def _paths(module: str, kinds: set[str]) -> list[str]:
    """Return the adapter's name for a module of the base; the longer name includes the model's."""
    kind = _NUMBER.sub("*", f".{module}").removeprefix(".")
    paths = []
    for each in kinds:
        if f".{each}".endswith(f".{kind}"):
            paths.append(each.removesuffix(kind) + module)
        elif f".{kind}".endswith(f".{each}"):
            paths.append(".".join(module.split(".")[-len(each.split(".")) :]))
    return paths
