"""An adapter of a model whose experts are stacked, on a checkpoint that stores them one by one.

transformers 5 stacks the experts of most models when it loads them, and splits them when it saves:

    <path>.experts.gate_up_proj  [E, 2·width, in]   <path>.experts.<e>.w1.weight, .w3.weight
                                                    or .gate_proj.weight, .up_proj.weight
    <path>.experts.down_proj     [E, out, width]    <path>.experts.<e>.w2.weight, or .down_proj

An update of the stack becomes one of each stored matrix: of w1 the first rows of Bₑ, of w3 the
others. Mixtral's block is ``block_sparse_moe`` on disk and ``mlp`` in the model.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeVar

from lora_export.adapters.canonical import Added, LowRank, Rows, Saved
from lora_export.adapters.experts import ExpertColumns, ExpertRows, Recent
from lora_export.base.errors import AdapterError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.resolve import Names
    from lora_export.base.parameters import Parameter

__all__ = ["STORED_EXPERTS", "as_stored"]

STORED_EXPERTS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
    "up_proj": (("up_proj",),),
    "down_proj": (("w2",), ("down_proj",)),
}
"""The modules of one expert whose rows, one below the other, are its matrix of the stack."""

_RENAMED: Final = ((".mlp.", ".block_sparse_moe."), (".block_sparse_moe.", ".mlp."))


def as_stored(adapter: Adapter, names: Names, *, kept: Sequence[str] = ()) -> Adapter:
    """Return `adapter` with what it changes named and split as the checkpoint stores it.

    What is found under its own name stays as it is; what is not found at all is left to `resolve`.

    Args:
        adapter: The adapter.
        names: The checkpoint's parameters.
        kept: Parameters that stay as they are: what the user drops by these names.

    Raises:
        AdapterError: The stored experts are not as many or not as wide as the adapter's.
        UnsupportedError: The experts are stored in a way that is not known.
    """
    recent = Recent()
    low_rank: list[LowRank] = []
    for update in adapter.low_rank:
        if update.parameter in kept or names.find(update.parameter) is not None:
            low_rank.append(update)
        elif parts := _split(update, names, recent, adapter.source):
            low_rank.extend(parts)
        else:
            low_rank.append(
                replace(update, module=_renamed(update.module, update.parameter, names))
            )
    return replace(
        adapter,
        low_rank=tuple(low_rank),
        saved=tuple(_moved(each, names) for each in adapter.saved),
        added=tuple(_moved(each, names) for each in adapter.added),
        rows=tuple(_moved(each, names) for each in adapter.rows),
    )


_Named = TypeVar("_Named", Saved, Added, Rows)


def _moved(item: _Named, names: Names) -> _Named:
    return replace(item, parameter=_renamed(item.parameter, item.parameter, names))


def _renamed(path: str, parameter: str, names: Names) -> str:
    """Return `path` as the checkpoint has it, if it has `parameter` under another name."""
    if names.find(parameter) is None:
        for old, new in _RENAMED:
            if names.find(parameter.replace(old, new)) is not None:
                return path.replace(old, new)
    return path


def _split(update: LowRank, names: Names, recent: Recent, source: str) -> list[LowRank]:
    """Return an update of each stored matrix; nothing where no experts are stored one by one."""
    if update.name is None or update.experts == 1:
        return []
    for module in (update.module, *(update.module.replace(*each) for each in _RENAMED)):
        for parts in STORED_EXPERTS.get(update.name, ()):
            found = [names.find(f"{module}.0.{part}.weight") for part in parts]
            if None not in found:
                return _of_each(replace(update, module=module), parts, names, recent, source)
    other = next((name for name in names if f"{update.module}." in name), None)
    if other is not None:
        msg = (
            f"adapter {source!r} updates {update.parameter!r}, which the base stores in a way "
            f"that is not known ({other!r})"
        )
        raise UnsupportedError(
            msg,
            hint="Save the base as the model holds it, and merge into that: "
            "model.save_pretrained(FOLDER, save_original_format=False).",
        )
    return []


def _of_each(
    update: LowRank, parts: Sequence[str], names: Names, recent: Recent, source: str
) -> list[LowRank]:
    result: list[LowRank] = []
    for expert in range(update.experts):
        stored = [_stored(update, expert, part, names, source) for part in parts]
        *starts, outputs = accumulate((each.shape[0] for each in stored), initial=0)
        if outputs != update.b.shape[0]:
            msg = (
                f"the update of {update.parameter!r} by adapter {source!r} has "
                f"{update.b.shape[0]} outputs, the base {outputs} ({', '.join(parts)})"
            )
            raise AdapterError(msg, hint="Is this the right base?")
        for part, start, each in zip(parts, starts, stored, strict=True):
            columns = ExpertColumns(update.b, update.experts, expert, start, each.shape[0], recent)
            result.append(
                LowRank(
                    f"{update.module}.{expert}.{part}",
                    ExpertRows(update.a, update.experts, expert),
                    columns,
                    update.scale,
                    name="weight",
                )
            )
    if names.find(f"{update.module}.{update.experts}.{parts[0]}.weight") is not None:
        msg = (
            f"the update of {update.parameter!r} by adapter {source!r} has {update.experts} "
            "experts, the base has more"
        )
        raise AdapterError(msg, hint="Is this the right base?")
    return result


def _stored(update: LowRank, expert: int, part: str, names: Names, source: str) -> Parameter:
    path = f"{update.module}.{expert}.{part}.weight"
    found = names.find(path)
    if found is None or not found.shape:
        msg = (
            f"the update of {update.parameter!r} by adapter {source!r} has {update.experts} "
            f"experts, but the base has no matrix {path!r}"
        )
        raise AdapterError(msg, hint="Is this the right base?")
    return found
