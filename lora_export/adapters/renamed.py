"""An adapter whose names are those of the hub's checkpoints, as transformers 4 had them.

The rules by which transformers renames a checkpoint rename what an adapter changes, too. A module
that the model holds as a part of another (an expert of a stack) has no parameter of its own.
"""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from lora_export.adapters.canonical import Added, LowRank, Rows, Saved
from lora_export.base.conversions import new_name
from lora_export.base.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.resolve import Names
    from lora_export.base.conversions import Conversion

__all__ = ["as_named"]

_Whole = TypeVar("_Whole", Saved, Added, Rows)


def as_named(
    adapter: Adapter,
    names: Names,
    conversions: Sequence[Conversion],
    *,
    drop: Sequence[str] = (),
) -> Adapter:
    """Return `adapter` with what it changes named as the model names it.

    What is found under its own name stays as it is; what is not found at all is left to `resolve`.

    Args:
        adapter: The adapter.
        names: The model's parameters.
        conversions: How transformers loads a checkpoint of the model.
        drop: Patterns of what the user leaves out, by the adapter's own names.

    Raises:
        UnsupportedError: The model stacks or splits what the adapter changes.
    """

    def renamed(parameter: str) -> str:
        dropped = any(fnmatch.fnmatchcase(parameter, pattern) for pattern in drop)
        if dropped or names.find(parameter) is not None:
            return parameter
        new = new_name(parameter, conversions)
        if names.find(new.name) is None:
            return parameter
        if new.converter is not None:
            msg = (
                f"adapter {adapter.source!r} changes {parameter!r}, which transformers makes a "
                f"part of {new.name!r} or takes apart"
            )
            hint = (
                "Load base and adapter with PEFT under transformers 5 and save the adapter again, "
                "or merge it into the checkpoint first: lora-export merge."
            )
            raise UnsupportedError(msg, hint=hint)
        return new.name

    def low_rank(update: LowRank) -> LowRank:
        new = renamed(update.parameter)
        if new == update.parameter:
            return update
        module, _, leaf = new.rpartition(".")
        return replace(update, module=module, name=leaf if update.name is not None else None)

    def whole(item: _Whole) -> _Whole:
        return replace(item, parameter=renamed(item.parameter))

    named = replace(
        adapter,
        low_rank=tuple(map(low_rank, adapter.low_rank)),
        saved=tuple(map(whole, adapter.saved)),
        added=tuple(map(whole, adapter.added)),
        rows=tuple(map(whole, adapter.rows)),
    )
    return adapter if named == adapter else replace(named, renamed=True)
