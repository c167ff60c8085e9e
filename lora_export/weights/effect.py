"""Whether a merge changed any weight, decided without reading the base again.

    low-rank updates   by their fidelity meters: no entry moved, or ‖ΔW‖ ≤ `NOISE`·‖W0‖
    everything else    the SHA-256 of the stored bytes, against the base's in the same dtype

As in the verification, an adapter's effect is that of its low-rank updates where it has any: a
trained head beside updates of zero does not make up for them.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.core.errors import ParityError
from lora_export.core.tensors import bytes_of
from lora_export.weights.stream import base_entry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.resolve import Resolved, Update
    from lora_export.weights.merge_plan import MergePlan

__all__ = ["ZERO_UPDATE", "missing_effect", "require_effect"]

ZERO_UPDATE: Final = "its update is zero"
_EQUAL: Final = "what it replaces equals the base's values"
_ROUNDED: Final = "its update is lost to rounding, every stored weight is the base's"

_HINTS: Final[dict[str, str]] = {
    ZERO_UPDATE: "It was saved before training, or the file is damaged.",
    _EQUAL: "It was saved before training, or the base already contains it.",
    _ROUNDED: "Keep such tensors in float32: --float32-where-lossy.",
}
"""The next step after a merge that changes nothing, by its reason."""


def missing_effect(
    resolved: Resolved, plan: MergePlan, digests: Mapping[str, str], *, prefix: str
) -> str | None:
    """Return why a merge that was written changes nothing; None where it changes something.

    Args:
        resolved: The adapter.
        plan: The merge, all of its entries written.
        digests: The SHA-256 of the stored bytes of each tensor that is not the base's.
        prefix: What was put before the base's names.
    """
    trained = [u for u in resolved.updates if u.low_rank or u.added or u.computed]
    updates = trained or list(resolved.updates)
    if not all(_is_unchanged(update, plan, digests, prefix) for update in updates):
        return None
    if not trained:
        return _EQUAL
    meters = [plan.meters.get(_stored_name(update, plan, prefix)) for update in trained]
    if all(meter is None or meter.is_noise for meter in meters):
        return ZERO_UPDATE
    return _ROUNDED


def require_effect(reason: str | None, source: str, *, allowed: bool) -> None:
    """Require that an adapter changes something.

    Args:
        reason: Why it does not; None where it does.
        source: What the user calls the adapter.
        allowed: Whether it may change nothing.

    Raises:
        ParityError: It changes nothing, and that is not allowed.
    """
    if reason is None or allowed:
        return
    msg = f"adapter {source!r} changes nothing: {reason}"
    raise ParityError(msg, hint=f"{_HINTS[reason]} To merge it anyway: --allow-no-effect.")


def _stored_name(update: Update, plan: MergePlan, prefix: str) -> str:
    """Return the name of an update's parameter in the merged checkpoint."""
    name = update.parameter.name
    return prefix + name if name in plan.sources else name


def _is_unchanged(update: Update, plan: MergePlan, digests: Mapping[str, str], prefix: str) -> bool:
    """Return whether a parameter has the base's value, up to noise."""
    name = _stored_name(update, plan, prefix)
    meter = plan.meters.get(name)
    if meter is not None:
        return meter.is_unmoved or meter.is_noise
    source = plan.sources.get(update.parameter.name)
    entry = next(entry for entry in plan.entries if entry.name == name)
    if source is None or source.shape != entry.shape:
        return False
    if source.dtype.name == entry.dtype.name:
        return digests[name] == source.hexdigest()
    digest = hashlib.sha256()
    for block in base_entry(replace(update.parameter, dtype=entry.dtype.name), source).blocks():
        digest.update(bytes_of(np.ascontiguousarray(block)))
    return digests[name] == digest.hexdigest()
