"""torch's ``nn.MultiheadAttention`` as PEFT adapts it: the whole module at once.

    <module>.lora_A, .lora_B                        of ``in_proj_weight``, which holds q, k and v
    <module>.base_layer.out_proj.lora_A, .lora_B    of ``out_proj``

The config names the module alone: rank, alpha and target of ``out_proj`` are its. PEFT adds the
update of ``out_proj`` twice, in training too (0.12 to 0.21, ``MultiheadAttention.merge`` in
``tuners/lora/layer.py`` adds it and then merges the inner layer): its scale is ``2·s``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = ["IN_PROJECTION", "OUT_PROJECTION_TIMES", "attention_of"]

IN_PROJECTION: Final = "in_proj_weight"
OUT_PROJECTION_TIMES: Final = 2.0
"""How many times PEFT adds the update of ``out_proj``."""

_OUT_PROJECTION: Final = ".out_proj"


def attention_of(module: str, adapted: Container[str]) -> str | None:
    """Return the attention that `module` is the output projection of, if that is adapted too.

    >>> attention_of("head.attention.out_proj", {"head.attention"})
    'head.attention'
    >>> attention_of("layers.0.self_attn.out_proj", {"layers.0.self_attn.q_proj"})
    """
    owner = module.removesuffix(_OUT_PROJECTION)
    return owner if owner != module and owner in adapted else None
