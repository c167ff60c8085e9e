"""The scale ``alpha / r`` of the methods that LyCORIS brought (LoHa, LoKr)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.adapters.pattern_settings import setting_of
from lora_export.core.shown_value import shown

if TYPE_CHECKING:
    from lora_export.adapters.methods.interface import AdaptedModule

__all__ = ["lycoris_scale"]


def lycoris_scale(module: AdaptedModule, rank: int | None) -> float:
    """Return ``alpha / r`` of a module, patterns applied.

    Args:
        module: The module.
        rank: The rank that its tensors have; None where they have none.

    Raises:
        AdapterError: The config says another rank, or no alpha.
    """
    expected = setting_of(module.config, "rank_pattern", module.path, module.config.get("r"))
    alpha = setting_of(module.config, "alpha_pattern", module.path, module.config.get("alpha"))
    if not isinstance(expected, int) or expected < 1 or (rank is not None and rank != expected):
        found = "" if rank is None else f"its tensors have rank {rank}, "
        raise module.error(f"{found}its config says r: {shown(expected)}")
    if alpha is None:
        raise module.error("its config has no alpha", "It must be a finite number.")
    return float(alpha) / expected
