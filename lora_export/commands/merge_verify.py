"""The verification of a merge, before it is published: see ``verification/merged_checkpoint.py``.

Modules that run models are imported only for a comparison, so that a merge without one starts fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import ParityError
from lora_export.core.merge_record import MergedVerification
from lora_export.exports.plan import main_dtype

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.commands.merge_job import Job
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["require_torch", "verify_job"]


def require_torch() -> None:
    """Raise `MissingRuntimeError` where torch, transformers or PEFT is not installed."""
    from lora_export.runtime.reference import require_reference

    require_reference()


def verify_job(
    job: Job,
    base: Checkpoint,
    merged: Path,
    *,
    dtype: str | None,
    allow_no_effect: bool,
    strict: bool,
) -> MergedVerification:
    """Compare a merged checkpoint with the unmerged adapter; return the verdict.

    Args:
        job: The merge.
        base: The base, as it is on disk.
        merged: The folder of the merged checkpoint.
        dtype: What its floating tensors were cast to; None where each kept its own.
        allow_no_effect: Whether the adapter may change nothing.
        strict: Whether an ambiguous comparison, or one that cannot be made, is an error.

    Raises:
        ParityError: They differ, or `strict` is set and the verdict is not ``pass``.
    """
    from lora_export.verification.merged_checkpoint import verify_merged

    found = verify_merged(
        base,
        merged,
        job.given.adapter,
        dtype=dtype or main_dtype(base),
        drop=job.given.spec.drop,
        vocab_size=job.resolved.vocabulary.after if job.resolved.vocabulary else None,
        allow_no_effect=allow_no_effect,
    )
    verdict, reason = found.verdict, found.reason
    if verdict == "fail":
        msg = f"the merged checkpoint differs from the unmerged adapter in PEFT: {reason}"
        raise ParityError(msg, hint=_hint(found.dtype))
    if strict and verdict != "pass":
        msg = f"the merged checkpoint is {verdict}: {reason}"
        raise ParityError(msg, hint="Nothing was written. To write it anyway, leave out --strict.")
    return MergedVerification(
        verdict=verdict,
        reason=reason,
        relative_l2=found.relative_l2,
        tolerance=found.tolerance,
        effect=found.effect,
        task=found.task,
    )


def _hint(dtype: str | None) -> str:
    """Return the hint for a comparison that failed."""
    if dtype in {"float16", "bfloat16"}:
        return (
            f"Nothing was written. Rounding to {dtype} may be the reason: try "
            "--float32-where-lossy or --dtype float32."
        )
    return "Nothing was written. Please report it with the model type and the adapter's config."
