"""The refusal of an adapter's tensors that match nothing in the base, or do not fit it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.adapters.wrappers import PEFT_PREFIX
from lora_export.core.errors import AdapterError
from lora_export.core.listing import first_few

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.parameters import Parameter

__all__ = ["refuse_incomplete", "refuse_rest"]

_SHOWN: Final = 5


def refuse_rest(adapter: Adapter, unmatched: Sequence[str], misfits: Sequence[str]) -> None:
    """Raise if anything of the adapter could not be applied, naming the first few."""
    for problems, what in ((unmatched, "match nothing in the base"), (misfits, "do not fit")):
        if problems:
            shown = first_few(problems, _SHOWN)
            base = f" It was trained on {adapter.base_name!r}." if adapter.base_name else ""
            msg = f"{len(problems)} tensor(s) of adapter {adapter.source!r} {what}:"
            if wrapper := _unknown_wrapper(unmatched):
                hint = (
                    f"An unknown wrapper left {wrapper!r} before PEFT's names: take it off the "
                    "names in the adapter's file."
                )
                raise AdapterError(msg, items=shown, hint=hint)
            raise AdapterError(
                msg,
                items=shown,
                hint=f"Is this the right base and task?{base} "
                "What the task does not use can be left out with --drop PATTERN; its training is "
                "then lost.",
            )


def refuse_incomplete(
    adapter: Adapter, parameters: Iterable[Parameter], changed: Collection[str]
) -> None:
    """Raise for a fine-tuned checkpoint that lacks parameters of the base.

    Args:
        adapter: The adapter.
        parameters: What the base has.
        changed: The parameters that the adapter has.

    Raises:
        AdapterError: It lacks some; the first few are named.
    """
    if not adapter.complete:
        return
    missing = [
        each.name
        for each in parameters
        if each.name not in changed and not each.is_buffer and each.computed is None
    ]
    if missing:
        msg = f"{len(missing)} tensor(s) of the base are missing in {adapter.source!r}:"
        raise AdapterError(
            msg,
            items=first_few(missing, _SHOWN),
            hint="Is it a checkpoint of this base? Give a file of some tensors by its own path.",
        )


def _unknown_wrapper(names: Iterable[str]) -> str | None:
    """Return the text before PEFT's prefix in one of the names, such as ``actor.``."""
    outer = (name.partition(PEFT_PREFIX) for name in names)
    return next((before for before, prefix, _ in outer if before and prefix), None)
