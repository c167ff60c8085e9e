"""Every tensor of an adapter resolved to one parameter of the model, or an error that names it."""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.base.errors import AdapterError, UnsupportedError, UsageError
from lora_export.base.tensors import same_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter, LowRank, Saved
    from lora_export.base.parameters import Parameter

__all__ = ["Names", "Resolved", "Update", "resolve"]

_SHOWN: Final = 5


@dataclass(frozen=True)
class Update:
    """What happens to one parameter: a low-rank update, a value of its own, or both in turn."""

    parameter: Parameter
    low_rank: LowRank | None = None
    saved: Saved | None = None


@dataclass(frozen=True)
class Resolved:
    """An adapter, resolved against a model.

    Attributes:
        adapter: The adapter.
        updates: One entry per parameter that changes, sorted by name.
        dropped: Tensors left out because the user said so.
        applied_count: How many of the adapter's tensors are applied.
    """

    adapter: Adapter
    updates: tuple[Update, ...]
    dropped: tuple[str, ...]
    applied_count: int


class Names:
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
) -> Resolved:
    """Resolve every tensor of `adapter` to a parameter of the model.

    Args:
        adapter: The adapter.
        parameters: What the graph reads.
        prefix: ``base_model_prefix`` with its dot, or ``""``.
        drop: Patterns (``fnmatch``) of tensors that the user leaves out.
        resizable: Parameters whose first axis an adapter may change (the head's labels).

    Raises:
        AdapterError: Tensors match nothing, or have shapes that do not fit; up to five are named.
        UnsupportedError: An update of a tied weight, which would have to be untied first.
        UsageError: A pattern of `drop` matches nothing.
    """
    names = Names(parameters, prefix)
    updates: dict[str, Update] = {}
    unmatched: list[str] = []
    dropped: list[str] = []
    misfits: list[str] = []
    applied = len(adapter.repeated)
    used: Counter[str] = Counter()
    for path, low_rank, saved in _entries(adapter):
        patterns = [pattern for pattern in drop if fnmatch.fnmatchcase(path, pattern)]
        parameter = names.find(path)
        if patterns:
            used.update(patterns)
            dropped.append(path)
        elif parameter is None:
            unmatched.append(path)
        else:
            earlier = updates.get(parameter.name)
            _refuse_conflict(adapter, parameter, path, earlier, saved)
            misfit = _misfit(parameter, low_rank, saved, resizable)
            if misfit:
                misfits.append(f"{path}: {misfit}")
            applied += 2 if low_rank else 1
            updates[parameter.name] = Update(
                parameter,
                low_rank or (earlier.low_rank if earlier else None),
                saved or (earlier.saved if earlier else None),
            )
    if unused := [pattern for pattern in drop if not used[pattern]]:
        msg = f"--drop {unused[0]!r} matches no tensor of adapter {adapter.source!r}"
        raise UsageError(msg, hint="See its tensors with: lora-export inspect ADAPTER")
    if not misfits:
        misfits.extend(_uneven_head(updates, parameters, resizable))
    _refuse_rest(adapter, unmatched, misfits)
    ordered = tuple(updates[name] for name in sorted(updates))
    return Resolved(adapter, ordered, tuple(dropped), applied)


def _entries(adapter: Adapter) -> Iterable[tuple[str, LowRank | None, Saved | None]]:
    for update in adapter.low_rank:
        yield f"{update.module}.weight", update, None
    for saved in adapter.saved:
        yield saved.parameter, None, saved


def _refuse_conflict(
    adapter: Adapter,
    parameter: Parameter,
    path: str,
    earlier: Update | None,
    saved: Saved | None,
) -> None:
    """Refuse two updates or two values of one parameter, and a change to one of tied names."""
    if earlier is not None and (earlier.saved is None) == (saved is None):
        if saved and earlier.saved and same_values(saved.tensor, earlier.saved.tensor):
            return
        msg = f"adapter {adapter.source!r} changes {parameter.name!r} twice, differently"
        raise UnsupportedError(msg, hint="Save the adapter again, with each parameter once.")
    if parameter.aliases and not (saved and _saved_under_all_names(adapter, parameter)):
        others = ", ".join(repr(n) for n in (parameter.name, *parameter.aliases) if n != path)
        msg = f"adapter {adapter.source!r} changes {path!r}, which is tied to {others}"
        raise UnsupportedError(
            msg,
            hint="Merging would change both; untie the base (tie_word_embeddings: false) first.",
        )


def _saved_under_all_names(adapter: Adapter, parameter: Parameter) -> bool:
    """Whether the adapter carries a tied parameter under each of its names (``bias: all``)."""
    held = {saved.parameter for saved in adapter.saved}
    return {parameter.name, *parameter.aliases} <= held


def _misfit(
    parameter: Parameter,
    low_rank: LowRank | None,
    saved: Saved | None,
    resizable: frozenset[str],
) -> str | None:
    """Say how the tensors do not fit `parameter`, or None."""
    if saved is not None:
        shape = saved.tensor.shape
        same_rest = shape[1:] == parameter.shape[1:] and len(shape) == len(parameter.shape) > 0
        if shape == parameter.shape or (parameter.name in resizable and same_rest):
            return None
        return f"the adapter has {list(shape)}, the model {list(parameter.shape)}"
    assert low_rank is not None  # noqa: S101  (one of the two is given)
    out_features, in_features = low_rank.b.shape[0], low_rank.a.shape[1]
    input_first = low_rank.embedding or parameter.module_type == "Conv1D"
    delta = (in_features, out_features) if input_first else (out_features, in_features)
    if delta != parameter.shape:
        return f"the update is {list(delta)}, the weight {list(parameter.shape)}"
    if low_rank.embedding != (parameter.module_type == "Embedding"):
        return f"the module is a {parameter.module_type}"
    return None


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


def _refuse_rest(adapter: Adapter, unmatched: Sequence[str], misfits: Sequence[str]) -> None:
    """Raise if anything of the adapter could not be applied, naming the first few."""
    for problems, what in ((unmatched, "match nothing in the base"), (misfits, "do not fit")):
        if problems:
            shown = "\n  ".join(problems[:_SHOWN])
            more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            base = f" It was trained on {adapter.base_name!r}." if adapter.base_name else ""
            msg = (
                f"{len(problems)} tensor(s) of adapter {adapter.source!r} {what}:\n  {shown}{more}"
            )
            raise AdapterError(
                msg,
                hint=f"Is this the right base and task?{base} "
                "What the task does not use can be left out with --drop PATTERN.",
            )
