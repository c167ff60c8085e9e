"""Every tensor of an adapter resolved to one parameter of the model, or an error that names it."""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NoReturn

from lora_export.adapters.canonical import Added, Computed, LowRank, Rows, Saved
from lora_export.adapters.item_forms import fitted, present_items
from lora_export.adapters.leftovers import refuse_incomplete, refuse_rest
from lora_export.adapters.saved_modules import require_brought
from lora_export.adapters.ties import follow_ties, groups_of, with_names
from lora_export.adapters.vocabulary import vocabulary_of
from lora_export.adapters.wrappers import refuse_training_only
from lora_export.core.errors import TiedParameterError, UnsupportedError, UsageError
from lora_export.core.tensors import count_stored, same_values
from lora_export.ondevice.printable import shell_command

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter, Item
    from lora_export.adapters.ties import TieGroup
    from lora_export.adapters.vocabulary import Vocabulary
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = ["ModelNames", "Resolved", "Update", "resolve"]


@dataclass(frozen=True)
class Update:
    """The update of one parameter: a value that replaces it, then changes that are added.

    Attributes:
        parameter: The parameter.
        low_rank: ``s·B A``.
        saved: The value that it starts from, instead of the base's.
        added: What is added to it.
        rows: Rows of it that are replaced.
        computed: The method that computes it.
        padded: Whether it is the base's value with zeros appended, or cut, to its shape.
    """

    parameter: Parameter
    low_rank: LowRank | None = None
    saved: Saved | None = None
    added: Added | None = None
    rows: Rows | None = None
    computed: Computed | None = None
    padded: bool = False

    @property
    def changes_value(self) -> bool:
        """Whether something is computed from a value, the base's or the adapter's own."""
        items = (self.low_rank, self.added, self.rows, self.computed)
        return self.padded or any(item is not None for item in items)

    @property
    def needs_base(self) -> bool:
        """Whether the result depends on the base's value."""
        return self.saved is None

    def with_item(self, item: Item) -> Update | None:
        """Return the update with one more item; None where it has one of this kind already."""
        kind = _FIELDS[type(item)]
        taken = getattr(self, kind) is not None
        return None if taken else replace(self, **{kind: item})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Resolved:
    """An adapter, resolved against a model.

    Attributes:
        adapter: The adapter.
        updates: One entry per parameter that changes, sorted by name.
        dropped: Tensors left out because the user said so, or because they are `unread`.
        applied_count: How many of the adapter's tensors are applied.
        vocabulary: How it changes the number of tokens; the parameters of `updates` have the new
            shapes. None where it keeps it.
        unread: Changes to names of a tied weight that the graph does not read (T5's ``shared``):
            PEFT's unmerged model computes the same without them.
    """

    adapter: Adapter
    updates: tuple[Update, ...]
    dropped: tuple[str, ...]
    applied_count: int
    vocabulary: Vocabulary | None = None
    unread: tuple[str, ...] = ()

    @property
    def max_rank(self) -> int:
        """The largest rank among its low-rank updates; 0 without any."""
        return max((each.low_rank.rank for each in self.updates if each.low_rank), default=0)


_FIELDS: Final[dict[type, str]] = {
    LowRank: "low_rank",
    Saved: "saved",
    Added: "added",
    Rows: "rows",
    Computed: "computed",
}


class ModelNames:
    """Looks a name of another file up among a model's parameters.

    A bare backbone and a model with a head differ by ``base_model_prefix`` (``bert.``): a name is
    tried as it is, without the prefix, and with it. Tied weights answer to each of their names.
    """

    def __init__(self, parameters: Iterable[Parameter], prefix: str) -> None:
        self._prefix = prefix
        self._by_name: dict[str, Parameter] = {}
        for parameter in parameters:
            for name in (parameter.name, *parameter.aliases):
                self._by_name[name] = parameter

    def candidates(self, name: str) -> tuple[str, ...]:
        """Return the names under which `name` may be known, best first."""
        if not self._prefix:
            return (name,)
        if name.startswith(self._prefix):
            return (name, name.removeprefix(self._prefix))
        return (name, self._prefix + name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over every name."""
        return iter(self._by_name)

    def find(self, name: str) -> Parameter | None:
        """Return the parameter that `name` means, if any."""
        for candidate in self.candidates(name):
            if candidate in self._by_name:
                return self._by_name[candidate]
        return None


def resolve(
    adapter: Adapter,
    parameters: Sequence[Parameter],
    *,
    prefix: str,
    drop: Sequence[str] = (),
    resizable: frozenset[str] = frozenset(),
    ties: Sequence[TieGroup] = (),
) -> Resolved:
    """Resolve every tensor of `adapter` to a parameter of the model.

    Args:
        adapter: The adapter.
        parameters: What the graph reads.
        prefix: ``base_model_prefix`` with its dot, or ``""``.
        drop: Patterns (``fnmatch``) of tensors that the user leaves out.
        resizable: Parameters whose first axis an adapter may change (the head's labels).
        ties: Parameters that the base ties and the graph holds apart.

    Raises:
        AdapterError: Tensors match nothing, or have shapes that do not fit; up to five are named.
        TiedParameterError: A change to one name of a tied weight, which has to be untied first.
        UnsupportedError: Two changes of one kind to one parameter, or a module that only training
            reads.
        UsageError: A pattern of `drop` matches nothing.
    """
    names = ModelNames(parameters, prefix)
    tied = groups_of(parameters)
    adapter, unread = _with_ties(adapter, names, tied, ties, drop)
    followed = {name for group in tied if not _any_dropped(group, drop) for name in group.names}
    vocabulary = vocabulary_of(adapter, parameters, names.find, drop=drop, heads=resizable)
    if vocabulary is not None:
        parameters = vocabulary.resized(parameters)
        names = ModelNames(parameters, prefix)
    updates: dict[str, Update] = {}
    unmatched: list[str] = []
    dropped: list[str] = []
    misfits: list[str] = []
    applied: list[Tensor] = []
    used: Counter[str] = Counter()
    present, computed = present_items(adapter, names.find)
    for item in present:
        path = item.parameter
        patterns = [pattern for pattern in drop if fnmatch.fnmatchcase(path, pattern)]
        parameter = names.find(path)
        if patterns:
            used.update(patterns)
            dropped.append(path)
        elif parameter is None:
            unmatched.append(path)
        else:
            own, misfit = fitted(item, parameter, computed, resizable)
            misfits += misfit
            applied += item.tensors
            earlier = updates.get(parameter.name, Update(parameter))
            as_one = not parameter.aliases or parameter.name in followed
            updates[parameter.name] = _combined(adapter, earlier, own, as_one=as_one)
    if unused := [pattern for pattern in drop if not used[pattern]]:
        msg = f"--drop {unused[0]!r} matches no tensor of adapter {adapter.source!r}"
        raise UsageError(msg, hint="See its tensors with: lora-export inspect ADAPTER")
    require_brought(adapter, [parameter.name for parameter in parameters])
    kept = [each.parameter for each in adapter.saved if each.parameter not in set(dropped)]
    refuse_training_only(kept, adapter.source)
    if not misfits:
        misfits.extend(_uneven_head(updates, parameters, resizable))
    _refuse_bias_without_place(adapter, names, unmatched)
    refuse_rest(adapter, unmatched, misfits)
    refuse_incomplete(adapter, parameters, updates.keys())
    if vocabulary is not None:
        saved = {name for name, update in updates.items() if update.saved is not None}
        known = {each.name: each for each in parameters}
        for name, partner in vocabulary.partners(parameters, saved).items():
            updates[name] = Update(known[name], saved=updates[partner].saved)
            saved.add(name)
        vocabulary.require_whole(adapter, parameters, saved)
        padded = (Update(each, padded=True) for each in vocabulary.padded(parameters))
        updates |= {each.parameter.name: each for each in padded}
    return Resolved(
        adapter,
        tuple(updates[name] for name in sorted(updates)),
        (*dropped, *unread),
        count_stored(applied) + len(adapter.repeated),
        vocabulary,
        unread,
    )


def _with_ties(
    adapter: Adapter,
    names: ModelNames,
    tied: Sequence[TieGroup],
    apart: Sequence[TieGroup],
    drop: Sequence[str],
) -> tuple[Adapter, tuple[str, ...]]:
    """Return the adapter with the changes that PEFT makes under every name of a tied weight.

    The second value names the changes that the graph does not read; they are left out.

    Raises:
        TiedParameterError: Names of a weight that is one here would end with different values.
    """
    members = {name for group in (*tied, *apart) for name in group.names}
    called = {
        item.parameter: next(
            (name for name in names.candidates(item.parameter) if name in members), item.parameter
        )
        for item in adapter.items
        if not any(fnmatch.fnmatchcase(item.parameter, pattern) for pattern in drop)
    }
    followed, split = follow_ties(with_names(adapter, called), tied, drop=drop)
    for group in split:
        changed = next(i.parameter for i in adapter.items if called.get(i.parameter) in group.names)
        _refuse_tied(adapter, changed, group.names)
    followed, _ = follow_ties(followed, apart, drop=drop)
    return _without_unread(followed, names, apart)


def _without_unread(
    adapter: Adapter, names: ModelNames, apart: Sequence[TieGroup]
) -> tuple[Adapter, tuple[str, ...]]:
    """Leave out items of tied names that the graph does not read.

    The second value names those whose values the graph reads under no other name either.
    """
    unread = {name for group in apart for name in group.names if names.find(name) is None}
    read = {id(t) for i in adapter.items if i.parameter not in unread for t in i.tensors}
    without = replace(
        adapter,
        low_rank=tuple(item for item in adapter.low_rank if item.parameter not in unread),
        saved=tuple(item for item in adapter.saved if item.parameter not in unread),
        added=tuple(item for item in adapter.added if item.parameter not in unread),
        rows=tuple(item for item in adapter.rows if item.parameter not in unread),
        computed=tuple(item for item in adapter.computed if item.parameter not in unread),
    )
    left_out = [
        item
        for item in adapter.items
        if item.parameter in unread and any(id(tensor) not in read for tensor in item.tensors)
    ]
    read_saved = {each.parameter: each for each in without.saved}

    def is_repeated(item: Item) -> bool:
        """Whether the graph reads the same value under another name (a bias of BERT's head)."""
        others = {name for group in apart if item.parameter in group.names for name in group.names}
        return isinstance(item, Saved) and any(
            name in read_saved and _same(item, read_saved[name]) for name in others
        )

    repeated = [item for item in left_out if is_repeated(item)]
    lost = {item.parameter for item in left_out if not is_repeated(item)}
    keys = (tensor.name for item in repeated for tensor in item.tensors)
    without = replace(without, repeated=(*adapter.repeated, *keys))
    return without, tuple(sorted(lost))


def _refuse_tied(adapter: Adapter, changed: str, names: Iterable[str]) -> NoReturn:
    others = ", ".join(repr(name) for name in names if name != changed)
    msg = f"adapter {adapter.source!r} changes {changed!r}, which is tied to {others}"
    raise TiedParameterError(
        msg,
        hint="This export has one weight for all of them. Make a new export with this adapter, "
        "which unties them: lora-export merge-and-build",
    )


def _any_dropped(group: TieGroup, drop: Sequence[str]) -> bool:
    """Return whether the user leaves out what the adapter has for a name of the weight."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in group.names for pattern in drop)


def _combined(adapter: Adapter, earlier: Update, item: Item, *, as_one: bool) -> Update:
    """Return the update with `item`; refuse two of one kind, and a change to one of tied names.

    `as_one` says that the item is the change of every name of the parameter.
    """
    parameter = earlier.parameter
    update = earlier.with_item(item)
    if update is None:
        if isinstance(item, Saved) and earlier.saved and _same(item, earlier.saved):
            return earlier
        if not parameter.aliases:
            msg = f"adapter {adapter.source!r} changes {parameter.name!r} twice, differently"
            raise UnsupportedError(msg, hint="Save the adapter again, with each parameter once.")
    if update is None or not (as_one or isinstance(item, Rows)):
        _refuse_tied(adapter, item.parameter, (parameter.name, *parameter.aliases))
    return update


def _same(one: Saved, other: Saved) -> bool:
    return same_values(one.tensor, other.tensor)


def _uneven_head(
    updates: Mapping[str, Update], parameters: Sequence[Parameter], resizable: frozenset[str]
) -> list[str]:
    """Name the head's parameters that do not all have the width that the adapter gives it."""
    widths: dict[str, int] = {}
    changed = False
    for parameter in parameters:
        if parameter.name in resizable:
            update = updates.get(parameter.name)
            saved = update.saved if update else None
            widths[parameter.name] = saved.tensor.shape[0] if saved else parameter.shape[0]
            changed |= saved is not None
    if not changed or len(set(widths.values())) <= 1:
        return []
    return [f"{name}: the head is {width} wide here" for name, width in widths.items()]


def _refuse_bias_without_place(
    adapter: Adapter, names: ModelNames, unmatched: Collection[str]
) -> None:
    """Raise for a bias of ``lora_bias`` on a module that has none; PEFT does not merge it either.

    Raises:
        UnsupportedError: There is one; it is named, with the number of all.
    """
    found = [
        each.parameter
        for each in adapter.added
        if each.parameter in unmatched
        and names.find(f"{each.parameter.removesuffix('.bias')}.weight") is not None
    ]
    if found:
        msg = (
            f"adapter {adapter.source!r} has lora_bias: true, and {len(found)} of its modules "
            f"have no bias in the base, such as {found[0].removesuffix('.bias')!r}: a merged "
            "model has no place for theirs"
        )
        raise UnsupportedError(
            msg,
            hint="Train without lora_bias, or leave these biases out with "
            f"{shell_command(['--drop', found[0]])}; their training is then lost.",
        )
