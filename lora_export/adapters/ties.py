"""Changes of tied weights: what PEFT's unmerged model computes, where one weight has several names.

A group is the names of one stored weight. PEFT wraps modules, so a change belongs to one name, and
the other names keep the base's value, with these exceptions:

    1. A parameter that the adapter's file holds for the base itself (``….base_layer.weight``,
       ``bias: all``, saved embeddings that were not trained) is loaded into the shared weight:
       every name gets it, rounded as it is stored.
    2. Trained token rows of the model's input embedding are applied to every name that has none of
       its own, unless the config lists other rows for such a name. PEFT goes by the config there:
       names that the checkpoint holds with other values get the rows too.

Where all names end with the same value, the weight stays one. Elsewhere it has to be split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from lora_export.adapters.canonical import Added, Computed, LowRank, Rows, Saved
from lora_export.core.declarations import class_named, input_embeddings
from lora_export.core.errors import UnsupportedError
from lora_export.core.parameters import COPY
from lora_export.core.tensors import read_all, same_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter, Item
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = [
    "TieGroup",
    "follow_ties",
    "group_of",
    "groups_of",
    "refuse_bias",
    "with_names",
]

_Item = TypeVar("_Item", Saved, Added, Rows, Computed)


@dataclass(frozen=True)
class TieGroup:
    """The names of one weight.

    Attributes:
        names: All of them, as the adapter's items call them.
        held: Those that have a tensor of their own, though of equal values.
        input: The one that is the model's input embedding; None where there is none, or where PEFT
            does not see the tie (the config of the whole model does not say it).
        apart: Names that the class ties too, but that are stored with values of their own:
            transformers keeps them apart, and PEFT trains the same rows in them.
    """

    names: tuple[str, ...]
    held: tuple[str, ...]
    input: str | None = None
    apart: tuple[str, ...] = ()


def groups_of(
    parameters: Iterable[Parameter], *, held: bool = False, model_class: str = ""
) -> tuple[TieGroup, ...]:
    """Return the tied weights of a traced model: its parameters with several names.

    Args:
        parameters: Those of the model.
        held: Whether every name will have a tensor of its own, rather than the first alone.
        model_class: The name of the model's class.
    """
    return tuple(
        group_of((each.name, *each.aliases), held=held, model_class=model_class)
        for each in parameters
        if each.aliases
    )


def group_of(names: Sequence[str], *, held: bool = False, model_class: str = "") -> TieGroup:
    """Return the group of `names`, with the input embedding that transformers declares.

    Args:
        names: The names of one weight in the model; the first is the input embedding's where none
            is declared.
        held: Whether every name has a tensor of its own, rather than the first alone.
        model_class: The name of the model's class; without it, or where it is unknown, the input
            embedding is the first that is one in any class.
    """
    found = class_named(model_class)
    own = f"{found.input}.weight" if found is not None else ""
    known = (name for name in names if name.removesuffix(".weight") in input_embeddings())
    first = own if own in names else next(known, names[0])
    return TieGroup(tuple(names), tuple(names) if held else (names[0],), first)


def follow_ties(
    adapter: Adapter,
    groups: Sequence[TieGroup],
    stored: Mapping[str, Tensor] | None = None,
    *,
    drop: Sequence[str] = (),
) -> tuple[Adapter, tuple[TieGroup, ...]]:
    """Give every name of a tied weight its own changes; return the groups that have to be split.

    Args:
        adapter: The adapter.
        groups: The tied weights.
        stored: The base's tensors, among them the biases of its heads.
        drop: Patterns of tensors that the user leaves out; they stay as they are.

    Returns:
        The adapter: where a group is split, every name of every group has its items; else the names
        that are held have them, and what the file repeats is counted as such.

    Raises:
        UnsupportedError: Changes that PEFT itself cannot run or loads in no defined order.
    """
    held = {} if stored is None else stored
    for rows in adapter.rows:
        refuse_bias(adapter, rows.parameter, rows.parameter, held)
    changed: list[tuple[TieGroup, dict[str, list[Item]]]] = []
    for group in groups:
        names = [n for n in (*group.names, *group.apart) if not _is_dropped(n, drop)]
        items = {name: [each for each in adapter.items if each.parameter == name] for name in names}
        if any(items.values()):
            _spread_saved(adapter, {n: each for n, each in items.items() if n not in group.apart})
            _spread_rows(adapter, group, items, held)
            changed.append((group, items))
    split = [group for group, items in changed if _is_split(group, items)]
    for group, items in changed:  # where one is split, the model looks for all names of the others
        own = {*group.held, *group.apart}
        kept = {name: each for name, each in items.items() if split or name in own}
        adapter = _with_items(adapter, list(items), kept)
    return adapter, tuple(split)


def with_names(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    """Return the adapter with its items under other names.

    Args:
        adapter: The adapter.
        names: The new path of a parameter for each of the adapter's.
    """

    def moved(update: LowRank) -> LowRank:
        new = names.get(update.parameter, update.parameter)
        return replace(update, module=new.removesuffix(f".{update.name or 'weight'}"))

    def renamed(item: _Item) -> _Item:
        return replace(item, parameter=names.get(item.parameter, item.parameter))

    return replace(
        adapter,
        low_rank=tuple(map(moved, adapter.low_rank)),
        saved=tuple(map(renamed, adapter.saved)),
        added=tuple(map(renamed, adapter.added)),
        rows=tuple(map(renamed, adapter.rows)),
        computed=tuple(map(renamed, adapter.computed)),
    )


def _spread_saved(adapter: Adapter, items: dict[str, list[Item]]) -> None:
    """Give every name the value that PEFT loads into the shared weight; mutates `items`."""
    loaded = [
        item
        for each in items.values()
        for item in each
        if isinstance(item, Saved) and item.in_place
    ]
    if not loaded:
        return
    first = loaded[0]
    for other in loaded[1:]:
        if not same_values(first.tensor, other.tensor):
            msg = (
                f"adapter {adapter.source!r} holds different values for {first.parameter!r} and "
                f"{other.parameter!r}, which are one weight of the base"
            )
            raise UnsupportedError(msg, hint="Save the adapter again, or leave one out: --drop.")
    for name, each in items.items():
        if not name.endswith(COPY) and not any(isinstance(item, Saved) for item in each):
            each.append(replace(first, parameter=name))


def _spread_rows(
    adapter: Adapter, group: TieGroup, items: dict[str, list[Item]], stored: Mapping[str, Tensor]
) -> None:
    """Give every name without rows the trained ones of the input embedding; mutates `items`."""
    with_rows = [name for name, each in items.items() if any(isinstance(i, Rows) for i in each)]
    by_list = isinstance(adapter.config.get("trainable_token_indices"), list)
    if not with_rows or group.input is None:
        return
    source = group.input if group.input in with_rows else with_rows[0]
    if (source != group.input and not by_list) or _lists_differ(adapter, group):
        return
    rows = next(item for item in items[source] if isinstance(item, Rows))
    for name, each in items.items():
        if name in with_rows or name.endswith(COPY):
            continue
        if any(isinstance(item, Saved) and not item.in_place for item in each):
            msg = (
                f"adapter {adapter.source!r} trains rows of {source!r} and carries "
                f"{name!r} whole, which is tied to it: PEFT cannot run that"
            )
            raise UnsupportedError(
                msg, hint="Leave one of them out: --drop; or untie the base before training."
            )
        refuse_bias(adapter, source, name, stored)
        each.append(replace(rows, parameter=name))


def _lists_differ(adapter: Adapter, group: TieGroup) -> bool:
    """Return whether the config lists several selections of rows for the names of a tied weight.

    PEFT compares the lists as they are written, whatever rows were trained: one key may name
    several modules (``embed_tokens`` of an encoder and of a decoder), each with rows of its own.
    It does not look at the declared source of a tie, the first name, unless that is the input.
    """
    listed = adapter.config.get("trainable_token_indices")
    if not isinstance(listed, dict):
        return False
    names = {*group.names[1:], *group.apart, group.input or group.names[0]}
    paths = [f".{name.removesuffix('.weight')}" for name in names]
    found = [
        rows
        for key, rows in listed.items()
        if any(path.endswith(f".{key}") or f".{key}".endswith(path) for path in paths)
    ]
    return any(rows != found[0] for rows in found)


def refuse_bias(adapter: Adapter, source: str, head: str, stored: Mapping[str, Tensor]) -> None:
    """Refuse rows that PEFT puts into a head with a bias.

    PEFT 0.21 runs such a head as ``F.linear(x, W)``, without its bias: the model that was trained,
    and that runs unmerged, is another one than any merge with the base's bias.
    """
    module = head.removesuffix(".weight")
    outer = module.removesuffix(".decoder")  # BERT and its kin store the decoder's bias outside it
    bias = next((name for name in (f"{module}.bias", f"{outer}.bias") if name in stored), None)
    if bias is not None and read_all(stored[bias]).any():
        msg = (
            f"adapter {adapter.source!r} trains rows of {source!r}, and with them of the head, "
            f"whose bias {bias!r} PEFT leaves out while it runs such an adapter"
        )
        raise UnsupportedError(
            msg,
            hint="A merge would bring the bias back. Untie the base before training "
            "(tie_word_embeddings: false), or leave the rows out: --drop.",
        )


def _is_split(group: TieGroup, items: Mapping[str, list[Item]]) -> bool:
    """Whether the names of a weight end with different values."""
    lists = [each for name, each in items.items() if name not in group.apart]
    if not lists or len(group.names) == 1:
        return False
    first, *others = lists
    if any(isinstance(item, LowRank | Computed) for each in lists for item in each):
        return True
    return any(not _alike(first, other) for other in others)


def _alike(first: list[Item], other: list[Item]) -> bool:
    one, two = ({type(item): item for item in each} for each in (first, other))
    return one.keys() == two.keys() and all(_same(one[kind], two[kind]) for kind in one)


def _same(one: Item, two: Item) -> bool:
    if isinstance(one, Rows) and isinstance(two, Rows):
        return one.indices == two.indices and same_values(one.tensor, two.tensor)
    if isinstance(one, Saved) and isinstance(two, Saved):
        return same_values(one.tensor, two.tensor)
    if isinstance(one, Added) and isinstance(two, Added):
        return one.scale == two.scale and same_values(one.tensor, two.tensor)
    return False


def _is_dropped(name: str, drop: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in drop)


def _with_items(
    adapter: Adapter, names: Sequence[str], items: Mapping[str, Sequence[Item]]
) -> Adapter:
    """Return the adapter with these items for `names`, the names of one weight."""
    outside = [item for item in adapter.items if item.parameter not in names]
    inside = [item for each in items.values() for item in each]
    left = {id(tensor) for item in inside for tensor in item.tensors}
    repeated = [
        tensor.name
        for item in adapter.items
        if item.parameter in names
        for tensor in item.tensors
        if id(tensor) not in left
    ]
    every = (*outside, *inside)
    return replace(
        adapter,
        low_rank=tuple(item for item in every if isinstance(item, LowRank)),
        saved=tuple(item for item in every if isinstance(item, Saved)),
        added=tuple(item for item in every if isinstance(item, Added)),
        rows=tuple(item for item in every if isinstance(item, Rows)),
        computed=tuple(item for item in every if isinstance(item, Computed)),
        repeated=(*adapter.repeated, *repeated),
    )
