"""Adapters of other methods than LoRA, held as LoRA in graphs that several adapters share.

``--as-rank R``: each change of a weight becomes its best update of that rank, and what that loses
is measured and recorded. What is verified afterwards is the graph against that LoRA in PEFT.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.adapters.canonical import Approximation
from lora_export.adapters.fit import header_parameters, prefix_of
from lora_export.adapters.naming import to_checkpoint_names
from lora_export.adapters.resolve import ModelNames
from lora_export.commands.convert_methods import as_lora, own_names
from lora_export.core.errors import UsageError
from lora_export.core.modes import SHARED_MODES, Mode

if TYPE_CHECKING:
    from lora_export.adapters.canonical import Adapter
    from lora_export.commands.adapter_inputs import LoadedAdapter
    from lora_export.core.progress import Progress
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["approximated", "as_rank_applied"]


def as_rank_applied(
    given: tuple[LoadedAdapter, ...],
    checkpoint: Checkpoint | None,
    mode: Mode,
    tell: Progress,
) -> tuple[LoadedAdapter, ...]:
    """Return adapters with those of other methods than LoRA approximated, where a rank is given.

    Args:
        given: The adapters of a command.
        checkpoint: The base; None where it is not at hand.
        mode: The mode of the export.
        tell: Told about each weight, and what is lost.

    Raises:
        UsageError: A rank is given for a merged export, which holds every method exactly, or
            without the base.
        AdapterError: An adapter does not fit the base.
    """
    return tuple(_applied(each, checkpoint, mode, tell) for each in given)


def _applied(
    given: LoadedAdapter, checkpoint: Checkpoint | None, mode: Mode, tell: Progress
) -> LoadedAdapter:
    rank, adapter = given.spec.as_rank, given.adapter
    if rank is None:
        return given
    if mode not in SHARED_MODES:
        msg = f"--as-rank (as_rank) is given for adapter {adapter.name!r} of a merged export"
        raise UsageError(msg, hint="Leave it out: merged graphs hold every method exactly.")
    if all(each.product is not None for each in adapter.computed):
        return given
    if checkpoint is None:
        msg = f"adapter {adapter.name!r} is of the method {adapter.method}: it needs its base"
        raise UsageError(msg, hint="Give the base that it was trained on: --base PATH.")
    found = approximated(adapter, checkpoint, rank, tell)
    note = _note(found)
    tell.note(f"note: {note}")
    return replace(given, adapter=replace(found, notes=(*found.notes, note)))


def approximated(adapter: Adapter, checkpoint: Checkpoint, rank: int, tell: Progress) -> Adapter:
    """Return an adapter of another method as LoRA, with what it loses.

    Args:
        adapter: The adapter, under its own names or the model's.
        checkpoint: The base.
        rank: The largest rank of an update.
        tell: Told about each weight.

    Raises:
        AdapterError: The adapter does not fit the base, or holds NaN or infinity.
    """
    parameters = header_parameters(checkpoint.tensors)
    prefix = prefix_of(str(checkpoint.config["model_type"]), parameters, adapter)
    names = ModelNames(parameters, prefix)
    stored = to_checkpoint_names(adapter, names, config=checkpoint.config)
    own = own_names(adapter, stored)
    made, losses = as_lora(stored, own, checkpoint, prefix=prefix, rank=rank, tell=tell)
    kept = Approximation(adapter.method, rank, losses)
    return replace(made, approximation=kept, renamed=True)


def _note(adapter: Adapter) -> str:
    found = adapter.approximation
    assert found is not None  # noqa: S101  (by the caller)
    worst = max(found.losses, key=lambda name: found.losses[name], default=None)
    lost = "nothing" if worst is None else f"up to {found.losses[worst]:.3g} of an update ({worst})"
    return (
        f"adapter {adapter.name!r} ({found.method}) is held as LoRA of rank {found.rank}, which "
        f"loses {lost}"
    )
