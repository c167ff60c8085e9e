"""An update of stacked experts, on a checkpoint that stores them one by one.

transformers 5 stacks the experts of most models when it loads them, and splits them when it saves:

    <path>.experts.gate_up_proj  [E, 2·width, in]   <path>.experts.<e>.w1.weight, .w3.weight
                                                    or .gate_proj.weight, .up_proj.weight
    <path>.experts.down_proj     [E, out, width]    <path>.experts.<e>.w2.weight, or .down_proj

An update of the stack becomes one of each stored matrix: of w1 the first rows of Bₑ, of w3 the
others. Which tensors are stacked follows from transformers' rules for the model; where these are
not known, from a table of names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from lora_export.adapters.canonical import LowRank
from lora_export.adapters.experts import ExpertColumns, ExpertRows, Recent
from lora_export.core.errors import AdapterError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.adapters.name_lookup import Lookup
    from lora_export.adapters.resolve import ModelNames
    from lora_export.core.parameters import Parameter

__all__ = ["STORED_EXPERTS", "split_stack"]

STORED_EXPERTS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
    "up_proj": (("up_proj",),),
    "down_proj": (("w2",), ("down_proj",)),
}
"""The modules of one expert whose rows, one below the other, are its matrix of the stack."""

_RENAMED: Final = ((".mlp.", ".block_sparse_moe."), (".block_sparse_moe.", ".mlp."))
_STACKS: Final = frozenset({("stack:0",), ("stack:0", "concatenate:1")})


def split_stack(update: LowRank, lookup: Lookup, recent: Recent, source: str) -> list[LowRank]:
    """Return an update of each stored matrix; nothing where no experts are stored one by one.

    Args:
        update: The update of a stack.
        lookup: The checkpoint's names.
        recent: The B's that were read last; one for all updates of an adapter.
        source: The adapter, for messages.

    Raises:
        AdapterError: The stored experts are not as many or not as wide as the adapter's.
        UnsupportedError: The experts are stored in a way that is not known.
    """
    experts = _by_rules(update, lookup) or _by_table(update, lookup.names)
    if experts:
        return _of_each(update, experts, recent, source)
    other = next((name for name in lookup.names if f"{update.module}." in name), None)
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


def _by_rules(update: LowRank, lookup: Lookup) -> list[list[Parameter]]:
    """Return the matrices of each expert that transformers stacks into the parameter."""
    by_source: defaultdict[int, list[Parameter]] = defaultdict(list)
    for each in lookup.sources_of(update.parameter):
        if each.new.converter is None or each.new.converter.operations not in _STACKS:
            return []
        by_source[each.new.source].append(each.parameter)
    columns = [sorted(by_source[key], key=_in_order) for key in sorted(by_source)]
    if len({len(column) for column in columns}) != 1:
        return []
    return [list(row) for row in zip(*columns, strict=True)]


def _in_order(parameter: Parameter) -> list[tuple[int, str]]:
    """Return a key that sorts expert 10 behind expert 9."""
    parts = re.split(r"(\d+)", parameter.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _by_table(update: LowRank, names: ModelNames) -> list[list[Parameter]]:
    """Return the matrices of each expert by the names that most models give them."""
    for module in (update.module, *(update.module.replace(*each) for each in _RENAMED)):
        for parts in STORED_EXPERTS.get(update.name or "", ()):
            experts: list[list[Parameter]] = []
            while True:
                paths = [f"{module}.{len(experts)}.{part}.weight" for part in parts]
                found = [each for path in paths if (each := names.find(path)) is not None]
                if len(found) < len(parts):
                    break
                experts.append(found)
            if experts:
                return experts
    return []


def _of_each(
    update: LowRank, experts: Sequence[Sequence[Parameter]], recent: Recent, source: str
) -> list[LowRank]:
    if len(experts) != update.experts:
        msg = (
            f"the update of {update.parameter!r} by adapter {source!r} has {update.experts} "
            f"experts, the base has {len(experts)} ({experts[0][0].name!r} and so on)"
        )
        raise AdapterError(msg, hint="Is this the right base?")
    result: list[LowRank] = []
    for expert, matrices in enumerate(experts):
        heights = [each.shape[0] if each.shape else 0 for each in matrices]
        *starts, outputs = accumulate(heights, initial=0)
        if outputs != update.b.shape[0]:
            stored = ", ".join(each.name for each in matrices)
            msg = (
                f"the update of {update.parameter!r} by adapter {source!r} has "
                f"{update.b.shape[0]} outputs, the base {outputs} ({stored})"
            )
            raise AdapterError(msg, hint="Is this the right base?")
        for each, start, height in zip(matrices, starts, heights, strict=True):
            module, _, leaf = each.name.rpartition(".")
            result.append(
                LowRank(
                    module,
                    ExpertRows(update.a, update.experts, expert),
                    ExpertColumns(update.b, update.experts, expert, start, height, recent),
                    update.scale,
                    name=leaf,
                )
            )
    return result
