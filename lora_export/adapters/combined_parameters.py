"""The parameters that combined adapters carry whole: heads, trained biases, embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import AdapterError
from lora_export.core.tensors import same_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.adapters.canonical import Adapter, Saved

__all__ = ["shared_parameters"]


def shared_parameters(
    adapters: Sequence[Adapter], head_from: str | None = None
) -> tuple[Saved, ...]:
    """Return the parameters that are carried whole, required to have one value each.

    Args:
        adapters: The adapters that are combined.
        head_from: The adapter whose head is taken, whatever the others have for it. A bias is of
            its head where it carries the weight too; other biases have to agree.

    Raises:
        AdapterError: Two adapters carry different values of a parameter.
    """
    head = _head(adapters, head_from)
    first = [each for each in adapters if each.name == head_from]
    found: dict[str, tuple[Adapter, Saved]] = {}
    for adapter in (*first, *(each for each in adapters if each.name != head_from)):
        for saved in adapter.saved:
            owner, held = found.setdefault(saved.parameter, (adapter, saved))
            if saved.parameter in head or same_values(held.tensor, saved.tensor):
                continue
            msg = (
                f"adapters {owner.name!r} and {adapter.name!r} both carry "
                f"{saved.parameter!r}, with different values"
            )
            raise AdapterError(
                msg,
                hint="Whole parameters are not averaged. Take the head of one adapter: --head-from "
                f"{owner.name}. Or leave them out with --drop PATTERN; in a recipe, drop can be "
                "set for each adapter.",
            )
    return tuple(found[path][1] for path in sorted(found))


def _head(adapters: Sequence[Adapter], head_from: str | None) -> set[str]:
    """Return the parameters of the head of the adapter `head_from`."""
    whole = {saved.parameter for each in adapters if each.name == head_from for saved in each.saved}
    return {
        name
        for name in whole
        if not name.endswith(".bias") or f"{name.removesuffix('bias')}weight" in whole
    }
