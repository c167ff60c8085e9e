"""Modules whose LoRA layer the unmerged model never calls, though a merge changes their weight.

PEFT puts its layer in the place of a module and adds ``s·B A x`` to what the module returns. Code
of transformers that reads ``module.weight`` itself, instead of calling the module, passes the layer
by: training gets no gradient there, PEFT's unmerged forward ignores the update, and merging applies
it. The table holds such modules by model type; ``tests/adapters/test_unread_layers.py`` runs each
of them in PEFT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.adapters.zero_updates import is_zero
from lora_export.base.listing import first_names

if TYPE_CHECKING:
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


def note_on_unread(adapter: Adapter, model_type: str) -> str | None:
    """Return a note where an adapter updates modules whose layer the unmerged model does not run.

    Args:
        adapter: The adapter; the factors of such modules are read, to tell an update of zero.
        model_type: The base's ``model_type``.
    """
    ends = UNREAD_LAYERS.get(model_type, ())
    modules = [
        update.module
        for update in adapter.low_rank
        if any(f".{update.module}".endswith(f".{end}") for end in ends) and not is_zero(update)
    ]
    if not modules:
        return None
    return (
        f"adapter {adapter.source!r} updates {len(modules)} module(s) whose weight {model_type} "
        f"reads directly ({first_names(modules)}): merging applies these updates, and "
        "PEFT's unmerged forward ignores them; leave them out with --drop"
    )
