"""The limits of quantization loss as users give them: by flags or by a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UsageError

if TYPE_CHECKING:
    from lora_export.verification.loss.gates import LossGates

__all__ = ["loss_gates", "require_limits"]

_FLAGS: Final = {
    "min_gain": "--min-gain (verify.min_gain)",
    "max_loss": "--max-loss (verify.max_loss)",
    "max_metric_drop": "--max-metric-drop (verify.max_metric_drop)",
}
_INFINITE: Final = float("inf")


def loss_gates(
    min_gain: float | None, max_loss: float | None, max_metric_drop: float | None
) -> LossGates:
    """Return the limits; those that are not given are the usual ones."""
    from lora_export.verification.loss.gates import LossGates

    usual = LossGates()
    return LossGates(
        min_gain=usual.min_gain if min_gain is None else min_gain,
        max_loss=max_loss,
        max_metric_drop=max_metric_drop,
    )


def require_limits(
    min_gain: float | None,
    max_loss: float | None,
    max_metric_drop: float | None,
    *,
    is_quantized: bool,
    has_base: bool = True,
    has_dataset: bool,
) -> None:
    """Refuse limits that nothing can be held against.

    Args:
        min_gain: The smallest gain of an adapter.
        max_loss: The largest relative L2 error.
        max_metric_drop: The most that the metric may lose.
        is_quantized: Whether weights are quantized.
        has_base: Whether the base is given, against which loss is measured.
        has_dataset: Whether a data set is given.

    Raises:
        UsageError: A limit is none, or says something about what there is not.
    """
    given = {"min_gain": min_gain, "max_loss": max_loss, "max_metric_drop": max_metric_drop}
    limits = {_FLAGS[key]: value for key, value in given.items() if value is not None}
    for flag, value in limits.items():
        if not 0 <= value < _INFINITE:
            msg = f"{flag} cannot be {value}"
            raise UsageError(msg, hint="Use a number of at least 0, such as 0.1.")
    if not limits:
        return
    first = next(iter(limits))
    if not is_quantized:
        msg = f"{first} needs quantized weights, and nothing is quantized"
        raise UsageError(msg, hint="Quantize with --quantize int4 or int8, or leave it out.")
    if not has_base:
        msg = f"{first} needs the base, to compare with the float model"
        raise UsageError(msg, hint="Add --base BASE.")
    if max_metric_drop is not None and not has_dataset:
        msg = f"{_FLAGS['max_metric_drop']} needs a data set"
        raise UsageError(msg, hint="Add --dataset (verify.dataset) FILE.jsonl.")
