"""An adapter of any method as one of LoRA, for `adapter convert`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.formats.delta import DELTA
from lora_export.adapters.layout import CONV1D_MODULES, checkpoint_parameters
from lora_export.adapters.resolve import resolve
from lora_export.adapters.vocabulary import EMBEDDINGS
from lora_export.core.errors import UsageError
from lora_export.core.tensors import read_all
from lora_export.exports.plan import HEAD_PARAMETERS
from lora_export.weights.low_rank_form import low_rank_of, whole_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.canonical import Adapter, Computed, LowRank, Saved
    from lora_export.adapters.resolve import Update
    from lora_export.core.progress import Progress
    from lora_export.core.tensors import Tensor
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["as_lora", "own_names", "require_rank"]

_MATRIX: Final = 2


def require_rank(adapter: Adapter, rank: int | None, *, has_base: bool) -> None:
    """Require the base and the rank where an adapter's updates are not low-rank ones.

    Args:
        adapter: The adapter.
        rank: ``--as-rank``.
        has_base: Whether a base is given.

    Raises:
        UsageError: One is missing, or a rank is given that has no use.
    """
    whole = adapter.format == DELTA
    if not adapter.computed and not whole:
        if rank is not None:
            msg = f"--as-rank is given, but adapter {adapter.source!r} has low-rank updates already"
            raise UsageError(msg, hint="Leave --as-rank out; analyze --compress-rank cuts ranks.")
        return
    if not has_base:
        kind = "holds whole tensors" if whole else f"is of the method {adapter.method}"
        msg = f"adapter {adapter.source!r} {kind}: it needs its base"
        raise UsageError(msg, hint="Give the base that it was trained on: --base PATH.")
    if whole and rank is None:
        msg = f"adapter {adapter.source!r} holds whole tensors: LoRA holds them approximately"
        raise UsageError(msg, hint="Give the rank; the loss is measured: --extract-rank 16")
    approximated = any(each.product is None for each in adapter.computed)
    if approximated and rank is None:
        msg = (
            f"adapter {adapter.source!r} is of the method {adapter.method}, whose updates are no "
            "products: LoRA holds them approximately"
        )
        raise UsageError(msg, hint="Give the rank; the loss is measured: --as-rank 16")


def as_lora(
    stored: Adapter,
    own: Mapping[str, str],
    checkpoint: Checkpoint,
    *,
    prefix: str,
    rank: int | None,
    tell: Progress,
) -> tuple[Adapter, dict[str, float]]:
    """Return an adapter of LoRA that changes the base as `stored` does, and its losses by weight.

    Args:
        stored: The adapter, under the checkpoint's names.
        own: The adapter's own name of each parameter.
        checkpoint: The base.
        prefix: The bare model's name, with its dot.
        rank: The rank of what is no product.
        tell: Told about each weight.

    Raises:
        AdapterError: The adapter does not fit the base, or holds NaN or infinity.
    """
    parameters = checkpoint_parameters(
        checkpoint.tensors, checkpoint.config, stored, prefix=prefix, head_dtype="float32"
    )
    resolved = resolve(stored, parameters, prefix=prefix, resizable=HEAD_PARAMETERS)
    updates: list[LowRank] = []
    saved: list[Saved] = []
    losses: dict[str, float] = {}
    changed = [each for each in resolved.updates if each.computed or each.low_rank]
    if stored.format == DELTA:
        changed = [_typed(each, checkpoint) for each in resolved.updates]
    tell.start("decomposing", sum(each.parameter.stored_bytes for each in changed))
    for update in changed:
        name = own.get(update.parameter.name, update.parameter.name)
        module = name.removesuffix(".weight")
        if update.low_rank is not None:  # a product: nothing is lost
            updates.append(replace(update.low_rank, module=module))
            losses[name] = 0.0
        elif update.parameter.name not in checkpoint.tensors or _stays_whole(update):
            saved += _kept(update, checkpoint, name)
        elif len(update.parameter.shape) < _MATRIX:
            saved.append(whole_value(update, _base(update, checkpoint), name))
        else:
            found = low_rank_of(update, _base(update, checkpoint), rank or 1, module)
            losses[name] = found.loss
            updates += [found.update] if found.update is not None else []
        tell.advance(update.parameter.stored_bytes)
    converted = replace(
        stored,
        low_rank=tuple(updates),
        computed=(),
        saved=(*(() if stored.format == DELTA else stored.saved), *saved),
        method="LORA",
    )
    return converted, losses


def _typed(update: Update, checkpoint: Checkpoint) -> Update:
    """Return an update of a whole weight with the type of its module, where that is a Conv1D."""
    module = update.parameter.name.removesuffix(".weight").rpartition(".")[2]
    conv1d = module in CONV1D_MODULES.get(str(checkpoint.config.get("model_type")), ())
    if not conv1d or len(update.parameter.shape) != _MATRIX:
        return update
    return replace(update, parameter=replace(update.parameter, module_type="Conv1D"))


def _stays_whole(update: Update) -> bool:
    """Whether a whole tensor cannot be an update of LoRA: a vector, an embedding, a bare matrix."""
    if update.saved is None:
        return False
    module, _, leaf = update.parameter.name.rpartition(".")
    end = module.rpartition(".")[2]
    table = end in EMBEDDINGS or "embed" in end or end in {"wpe", "relative_attention_bias"}
    return leaf != "weight" or len(update.parameter.shape) < _MATRIX or table


def _kept(update: Update, checkpoint: Checkpoint, name: str) -> list[Saved]:
    """Return a whole tensor, unless it is the base's own."""
    saved = update.saved
    assert saved is not None  # noqa: S101  (see `_stays_whole`)
    base = checkpoint.tensors.get(update.parameter.name)
    alike = base is not None and base.shape == saved.tensor.shape
    if alike and base is not None and np.array_equal(read_all(base), read_all(saved.tensor)):
        return []
    return [replace(saved, parameter=name)]


def own_names(adapter: Adapter, stored: Adapter) -> dict[str, str]:
    """Return the adapter's own name of each parameter that a method computes.

    Args:
        adapter: The adapter under its own names.
        stored: The same under the checkpoint's.
    """

    def key(item: Computed | Saved) -> tuple[int, bool]:
        return id(item.tensors[0]), item.parameter.endswith(".bias")

    before: list[Computed | Saved] = [*adapter.computed, *adapter.saved]
    items: list[Computed | Saved] = [*stored.computed, *stored.saved]
    known = {key(item): item.parameter for item in before}
    return {item.parameter: known.get(key(item), item.parameter) for item in items}


def _base(update: Update, checkpoint: Checkpoint) -> Tensor:
    """Return the base's value of what an update changes."""
    return checkpoint.tensors[update.parameter.name]
