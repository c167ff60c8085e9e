"""Modules whose LoRA layer the unmerged model never calls, though a merge changes their weight.

PEFT puts its layer in the place of a module and adds ``s·B A x`` to what the module returns. Code
of transformers that reads ``module.weight`` itself, instead of calling the module, passes the layer
by: training gets no gradient there, PEFT's unmerged forward ignores the update, and merging applies
it. The table holds such modules by model type; ``tests/adapters/test_unread_layers.py`` runs each
of them in PEFT. ``nn.MultiheadAttention``, which a base shows by its ``in_proj_weight``, reads its
``out_proj`` so too, except where PEFT adapts the whole attention (`adapters.attention_modules`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.adapters.attention_modules import IN_PROJECTION
from lora_export.adapters.zero_updates import is_zero
from lora_export.core.listing import first_names

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from lora_export.adapters.canonical import Adapter

__all__ = ["UNREAD_LAYERS", "note_on_unread"]

_RELATIVE: Final = ("rel_embeddings",)
_STEP: Final = ("mixer.dt_proj",)

UNREAD_LAYERS: Final[dict[str, tuple[str, ...]]] = {
    "deberta": _RELATIVE,
    "deberta-v2": _RELATIVE,
    "falcon_mamba": _STEP,
    "jamba": ("mamba.dt_proj",),
    "mamba": _STEP,
    "mobilebert": ("predictions.decoder", "predictions.dense"),
    "sew-d": _RELATIVE,
    "siglip2_vision_model": ("embeddings.position_embedding",),
    "wavlm": tuple(f"attention.{name}" for name in ("k_proj", "out_proj", "q_proj", "v_proj")),
}
"""Ends of module paths by ``model_type`` (transformers 5.23)."""


def note_on_unread(adapter: Adapter, model_type: str, stored: Iterable[str] = ()) -> str | None:
    """Return a note where an adapter updates modules whose layer the unmerged model does not run.

    Args:
        adapter: The adapter; the factors of such modules are read, to tell an update of zero.
        model_type: The base's ``model_type``.
        stored: The names of the base's tensors.
    """
    ends = UNREAD_LAYERS.get(model_type, ())
    attentions = _attentions(stored)
    whole = {update.module for update in adapter.low_rank}
    modules = [
        update.module
        for update in adapter.low_rank
        if (
            any(_ends_with(update.module, end) for end in ends)
            or _is_out_projection(update.module, attentions, whole)
        )
        and not is_zero(update)
    ]
    computed = (each.parameter.removesuffix(".weight") for each in adapter.computed)
    modules += [path for path in computed if any(_ends_with(path, end) for end in ends)]
    if not modules:
        return None
    return (
        f"adapter {adapter.source!r} updates {len(modules)} module(s) whose weight {model_type} "
        f"reads directly ({first_names(modules)}): merging applies these updates, and "
        "PEFT's unmerged forward ignores them; leave them out with --drop"
    )


def _attentions(stored: Iterable[str]) -> tuple[str, ...]:
    """Return the paths of the ``nn.MultiheadAttention`` of a base."""
    end = f".{IN_PROJECTION}"
    return tuple(name.removesuffix(end) for name in stored if name.endswith(end))


def _is_out_projection(module: str, attentions: Iterable[str], whole: Container[str]) -> bool:
    """Whether a module is the ``out_proj`` of an attention that is not adapted as a whole.

    The base's names may have a prefix that the adapter's lack, or lack one.
    """
    owner = module.removesuffix(".out_proj")
    return (
        owner != module
        and owner not in whole
        and any(_ends_with(owner, each) or _ends_with(each, owner) for each in attentions)
    )


def _ends_with(path: str, end: str) -> bool:
    return f".{path}".endswith(f".{end}")
