"""An adapter's names translated to those of its base: of a checkpoint, or of a model.

In order, of each thing that the adapter changes:

    1. its own name, with or without the bare model's (`ModelNames`) or ``module`` (`wrappers`);
    2. the name that transformers' rules make of it, or of which they make it (`conversions`);
    3. the rows of a fused weight that it is, or the weights that it fuses (`fused`, `stored`);
    4. its name below another root, where exactly one part of the base has all of them
       (`rerooted`): an adapter of the text model alone, for a vision-language model.

A name that is found nowhere is kept, and `resolve` refuses it.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lora_export.adapters.attention_modules import IN_PROJECTION
from lora_export.adapters.canonical import Added, Computed, LowRank, Rows, Saved
from lora_export.adapters.experts import Recent
from lora_export.adapters.fused import (
    Placed,
    join_low_rank,
    join_whole,
    split_low_rank,
    split_whole,
)
from lora_export.adapters.fused_methods import join_computed, split_computed
from lora_export.adapters.name_lookup import Lookup, count_outputs
from lora_export.adapters.rerooted import find_root, new_head_path
from lora_export.adapters.unstacked_experts import split_stack
from lora_export.core.declarations import class_for_task, class_named, conversions_for
from lora_export.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from lora_export.adapters.canonical import Adapter, Item
    from lora_export.adapters.resolve import ModelNames
    from lora_export.core.declarations import ModelClass
    from lora_export.core.name_conversions import Conversion
    from lora_export.core.parameters import Parameter

__all__ = ["rules_of", "to_checkpoint_names", "to_model_names"]

_BARE: Final = "FEATURE_EXTRACTION"

_Kind = TypeVar("_Kind", LowRank, Saved, Added, Rows, Computed)


def to_checkpoint_names(
    adapter: Adapter, names: ModelNames, *, config: Mapping[str, Any], drop: Sequence[str] = ()
) -> Adapter:
    """Return `adapter` with what it changes named, split and joined as a checkpoint stores it.

    Args:
        adapter: The adapter.
        names: The checkpoint's parameters.
        config: Its ``config.json``.
        drop: Patterns of what the user leaves out, by the adapter's own names.

    Raises:
        AdapterError: The names fit several parts of the base, or stacked experts are not as many or
            as wide as the base's.
        UnsupportedError: The base holds it as a part of something else, or in parts, in a way that
            is not known.
    """
    return _named(adapter, Lookup(names, rules_of(config, adapter.task_type), config), drop)


def to_model_names(
    adapter: Adapter,
    names: ModelNames,
    conversions: Sequence[Conversion],
    *,
    config: Mapping[str, Any] | None = None,
    drop: Sequence[str] = (),
) -> Adapter:
    """Return `adapter` with what it changes named, split and joined as a model has it.

    Args:
        adapter: The adapter.
        names: The parameters of the model, one of transformers'.
        conversions: How transformers loads a checkpoint of the model.
        config: The base's ``config.json``; without it the rows of fused weights are not known.
        drop: Patterns of what the user leaves out, by the adapter's own names.

    Raises:
        AdapterError: As `to_checkpoint_names` raises it.
        UnsupportedError: As `to_checkpoint_names` raises it.
    """
    known = {} if config is None else config
    rules = (conversions, *rules_of(known, adapter.task_type))
    return _named(adapter, Lookup(names, rules, known, stored=False), drop)


def rules_of(config: Mapping[str, Any], task_type: str | None) -> tuple[Sequence[Conversion], ...]:
    """Return transformers' rules for each class that an adapter may have been trained on.

    Args:
        config: The base's ``config.json``.
        task_type: PEFT's ``task_type`` of the adapter.
    """
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    model_type = str(config.get("model_type"))
    classes = [
        class_named(named) if isinstance(named, str) else None,
        class_for_task(model_type, task_type) if task_type else None,
        class_for_task(model_type, _BARE),
    ]
    known: list[ModelClass | None] = [each for each in classes if each is not None]
    rules = (conversions_for(each, config) for each in known or [None])
    return tuple(dict.fromkeys(rules))


def _named(adapter: Adapter, lookup: Lookup, drop: Sequence[str]) -> Adapter:
    kept = [item for item in adapter.items if _dropped(item, drop)]
    found, rest = _found(lookup, (i for i in adapter.items if not _dropped(i, drop)), adapter)
    if rest:
        moved = [_with_path(item, path) for item, path in find_root(lookup, rest, adapter.source)]
        again, rest = _found(lookup, moved, adapter)
        found += again
    given, known = ([item.parameter for item in items] for items in (adapter.items, found))
    rest = [
        _with_path(item, new_head_path(item.parameter, given, known))
        if (found and isinstance(item, Saved)) or item.parameter.startswith("module.")
        else item
        for item in rest
    ]
    items = [*kept, *found, *rest]
    named = replace(
        adapter,
        low_rank=_of(items, LowRank),
        saved=_of(items, Saved),
        added=_of(items, Added),
        rows=_of(items, Rows),
        computed=_of(items, Computed),
    )
    return replace(named, renamed=adapter.renamed or _names_of(named) != _names_of(adapter))


def _with_path(item: Item, path: str) -> Item:
    """Return `item` for the parameter at `path`."""
    if path == item.parameter:
        return item
    if not isinstance(item, LowRank):
        return replace(item, parameter=path)
    module, _, leaf = path.rpartition(".")
    return replace(
        item, module=module, name=None if leaf == "weight" and item.name is None else leaf
    )


def _dropped(item: Item, drop: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(item.parameter, pattern) for pattern in drop)


def _of(items: Iterable[Item], kind: type[_Kind]) -> tuple[_Kind, ...]:
    return tuple(item for item in items if isinstance(item, kind))


def _names_of(adapter: Adapter) -> list[tuple[str, tuple[str, ...]]]:
    """Return the changes of the adapter by PEFT's names, with their tensors."""
    return sorted(
        (
            item.module
            if isinstance(item, LowRank) and item.name in {None, IN_PROJECTION}
            else item.parameter,
            tuple(tensor.name for tensor in item.tensors),
        )
        for item in adapter.items
    )


def _found(
    lookup: Lookup, items: Iterable[Item], adapter: Adapter
) -> tuple[list[Item], list[Item]]:
    """Return the items under the base's names, and those that are not found."""
    found: list[Item] = []
    rest: list[Item] = []
    recent = Recent()
    joined: defaultdict[tuple[str, type], list[Placed]] = defaultdict(list)
    for item in items:
        path = lookup.path_of(item)
        if path is not None:
            found.append(_with_path(item, path))
        elif isinstance(item, LowRank) and item.experts > 1:
            matrices = split_stack(item, lookup, recent, adapter.source)
            found.extend(matrices)
            rest.extend(() if matrices else (item,))
        elif isinstance(item, Rows):
            rest.append(item)
        elif (place := lookup.place_of(item, adapter.source)) is not None:
            joined[place.parameter.name, type(item)].append(Placed(item, place.rows))
        elif pieces := lookup.pieces_of(item, adapter.source):
            found.extend(_split(item, pieces))
        else:
            rest.append(item)
    for (name, kind), parts in joined.items():
        parameter = lookup.names.find(name)
        assert parameter is not None  # noqa: S101  (it was found to place them)
        found.append(_joined(parameter, kind, parts, adapter.source))
    return found, rest


def _split(
    item: LowRank | Saved | Added | Computed, pieces: Sequence[tuple[str, npt.NDArray[np.int64]]]
) -> Iterable[Item]:
    if isinstance(item, Computed):
        return split_computed(item, pieces)
    if not isinstance(item, LowRank):
        return split_whole(item, pieces)
    if any(not path.endswith(".weight") for path, _ in pieces):
        msg = f"{item.parameter!r} cannot be split into {pieces[0][0]!r} and others"
        raise UnsupportedError(msg, hint="Merge it with PEFT; please report the model type.")
    return split_low_rank(item, [(path.removesuffix(".weight"), rows) for path, rows in pieces])


def _joined(parameter: Parameter, kind: type, parts: Sequence[Placed], source: str) -> Item:
    if kind is Computed:
        computed = [(each.item, each.rows) for each in parts if isinstance(each.item, Computed)]
        return join_computed(computed, parameter.name)
    if kind is not LowRank:
        return join_whole(parts, parameter.name, parameter.shape)
    module, _, leaf = parameter.name.rpartition(".")
    update = parts[0].item
    assert isinstance(update, LowRank)  # noqa: S101  (the key of the table is its class)
    outputs = count_outputs(parameter, update)
    return join_low_rank(parts, module, None if leaf == "weight" else leaf, outputs, source)
