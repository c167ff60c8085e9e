"""A checkpoint whose tied weights are split, where an adapter changes one of their names alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lora_export.adapters.declared_ties import declared_ties, untied_config
from lora_export.adapters.ties import follow_ties

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["Untied", "untie_for"]


@dataclass(frozen=True)
class Untied:
    """A checkpoint and an adapter with the same names for each tied weight.

    Attributes:
        checkpoint: The base, with a tensor for each name where the adapter splits a weight.
        adapter: The adapter, with the changes of every name; see `follow_ties`.
        copies: The names that were added, each with the tensor of the base that it repeats.
        bare: Whether the names of the base need the bare model's name before them, because those
            that were added are those of a class with a head.
    """

    checkpoint: Checkpoint
    adapter: Adapter
    copies: Mapping[str, str] = field(default_factory=dict)
    bare: bool = False


def untie_for(
    checkpoint: Checkpoint, adapter: Adapter, *, prefix: str, drop: Sequence[str] = ()
) -> Untied:
    """Split the tied weights of a checkpoint as far as an adapter needs it.

    A weight that is split has every name in the checkpoint, the other ones of the model too: its
    config then says ``tie_word_embeddings: false``, and transformers looks for all of them.

    Args:
        checkpoint: The base.
        adapter: The adapter, named as the base is stored where that is known.
        prefix: ``base_model_prefix`` with its dot, or ``""``.
        drop: Patterns of tensors that the user leaves out; they keep their names.

    Raises:
        UnsupportedError: The adapter changes what may be tied and nothing shows whether it is, or
            changes tied weights in a way that PEFT cannot run.
    """
    kept, dropped = _parted(adapter, drop)
    kept, ties = declared_ties(checkpoint.tensors, checkpoint.config, kept, prefix=prefix)
    kept, split = follow_ties(kept, ties.groups, checkpoint.tensors)
    adapter = replace(
        kept,
        low_rank=(*kept.low_rank, *dropped.low_rank),
        saved=(*kept.saved, *dropped.saved),
        added=(*kept.added, *dropped.added),
        rows=(*kept.rows, *dropped.rows),
        computed=(*kept.computed, *dropped.computed),
    )
    if not split:
        return Untied(checkpoint, adapter)
    tensors = checkpoint.tensors
    copies = {
        name: group.held[0] for group in ties.groups for name in group.names if name not in tensors
    }
    untied = replace(
        checkpoint,
        config=untied_config(checkpoint.config, ties.sections),
        tensors={**tensors, **{name: tensors[of] for name, of in copies.items()}},
    )
    return Untied(untied, adapter, copies, bool(copies) and ties.bare)


def _parted(adapter: Adapter, drop: Sequence[str]) -> tuple[Adapter, Adapter]:
    """Return the adapter with the items that stay, and with those that are left out."""

    def is_dropped(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in drop)

    kept, dropped = (
        replace(
            adapter,
            low_rank=tuple(i for i in adapter.low_rank if is_dropped(i.parameter) is out),
            saved=tuple(i for i in adapter.saved if is_dropped(i.parameter) is out),
            added=tuple(i for i in adapter.added if is_dropped(i.parameter) is out),
            rows=tuple(i for i in adapter.rows if is_dropped(i.parameter) is out),
            computed=tuple(i for i in adapter.computed if is_dropped(i.parameter) is out),
        )
        for out in (False, True)
    )
    return kept, dropped
