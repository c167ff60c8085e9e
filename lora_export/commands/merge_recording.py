"""The record of a merge, from its plan and what was written; see ``core/merge_record.py``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_export.commands.adapter_inputs import recorded_source
from lora_export.commands.open_base import training_base
from lora_export.core.json_file import encodable
from lora_export.core.merge_record import (
    MergedAdapter,
    MergedBase,
    MergedFidelity,
    MergedTensor,
    MergedVerification,
    MergeRecord,
)
from lora_export.core.version import VERSION
from lora_export.weights.fidelity import LOSSY_RELATIVE_ERROR, Fidelity, overall
from lora_export.weights.fingerprint import fingerprint, fingerprint_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.resolve import Resolved
    from lora_export.commands.merge_job import Job
    from lora_export.core.progress import Progress
    from lora_export.weights.checkpoint import Checkpoint
    from lora_export.weights.merge_plan import MergePlan

__all__ = [
    "encoded",
    "lossy_tensors",
    "make_record",
    "plan_fingerprint",
    "warn_of_loss",
]


def _base_fingerprint(checkpoint: Checkpoint, plan: MergePlan) -> str:
    """Return the fingerprint of the base that was read for the merge.

    The plan has hashed the values that were merged; of a quantized base the files are read again.
    """
    return plan_fingerprint(plan) if checkpoint.quantized is None else fingerprint(checkpoint)


def plan_fingerprint(plan: MergePlan) -> str:
    """Return the fingerprint of the tensors that a plan was made of."""
    return fingerprint_of(
        {name: (t.dtype.name, t.shape, t.hexdigest()) for name, t in plan.sources.items()}
    )


def make_record(
    job: Job,
    plan: MergePlan,
    digests: Mapping[str, str],
    *,
    output: Path,
    dtype: str | None,
    kept: frozenset[str],
    no_effect: str | None,
    notes: Sequence[str],
    verification: MergedVerification,
) -> MergeRecord:
    """Return the record of a merge whose tensors are written.

    Args:
        job: The merge.
        plan: What was written.
        digests: The SHA-256 of the stored bytes of each tensor that is not the base's.
        output: Where the checkpoint goes; sources are recorded relative to it.
        dtype: The dtype of all floating tensors; None where each kept its own.
        kept: The parameters that are stored in float32 because of what rounding would lose.
        no_effect: Why the merge changes nothing; None where it changes something.
        notes: The notes shown to the user.
        verification: How the result compares with the unmerged adapter.
    """
    base_digests = {name: t.hexdigest() for name, t in plan.sources.items()}
    written = {
        **{name: base_digests[source] for name, source in plan.unchanged.items()},
        **digests,
    }
    parts = {name: meter.result() for name, meter in plan.meters.items()}
    total = overall(parts.values())
    checkpoint, adapter = job.checkpoint, job.resolved.adapter
    return MergeRecord(
        tool=f"lora-export {VERSION}",
        base=MergedBase(
            source=recorded_source(checkpoint.place, output),
            model_type=str(checkpoint.config["model_type"]),
            fingerprint=_base_fingerprint(checkpoint, plan),
            quantization=checkpoint.stored_form,
            trained_on=training_base(checkpoint, output),
        ),
        adapter=_adapter_row(adapter, job.resolved, output),
        dtype=dtype,
        fingerprint=fingerprint_of(
            {e.name: (e.dtype.name, e.shape, written[e.name]) for e in plan.entries}
        ),
        renamed_by=job.prefix,
        brought=sorted(job.brought),
        float32=sorted(job.prefix + name for name in kept),
        tensors={
            entry.name: _tensor_row(
                entry.dtype.name, entry.shape, digests[entry.name], parts.get(entry.name)
            )
            for entry in sorted(plan.entries, key=lambda entry: entry.name)
            if entry.name in digests
        },
        fidelity=MergedFidelity(
            relative_error=total.relative_error, unmoved_share=total.unmoved_share
        ),
        no_effect=no_effect,
        notes=list(notes),
        verification=verification,
    )


def _adapter_row(adapter: Adapter, resolved: Resolved, output: Path) -> MergedAdapter:
    return MergedAdapter(
        name=adapter.name,
        source=recorded_source(adapter.folder, output),
        format=adapter.format,
        rank=max(adapter.max_rank, resolved.max_rank),
        sha256=adapter.sha256,
        tensors_total=adapter.tensor_count,
        tensors_applied=resolved.applied_count,
        dropped=list(resolved.dropped),
    )


def _tensor_row(
    dtype: str, shape: tuple[int, ...], sha256: str, fidelity: Fidelity | None
) -> MergedTensor:
    return MergedTensor(
        dtype=dtype,
        shape=list(shape),
        sha256=sha256,
        relative_error=fidelity.relative_error if fidelity else None,
        unmoved_share=fidelity.unmoved_share if fidelity else None,
    )


def encoded(record: MergeRecord) -> bytes:
    """Return the bytes of ``lora_export.merge.json``."""
    return (json.dumps(encodable(record.model_dump()), indent=1) + "\n").encode()


def lossy_tensors(record: MergeRecord) -> tuple[str, ...]:
    """Return the tensors that lost more of the delta than the table allows, worst first."""
    rows = {
        name: row.relative_error
        for name, row in record.tensors.items()
        if row.relative_error is not None and row.relative_error > LOSSY_RELATIVE_ERROR[row.dtype]
    }
    return tuple(sorted(rows, key=lambda name: (-rows[name], name)))


def warn_of_loss(lossy: Sequence[str], record: MergeRecord, tell: Progress) -> None:
    """Warn how many tensors lost much of the update, and name the worst."""
    if not lossy:
        return
    worst = record.tensors[lossy[0]]
    tell.note(
        f"warning: {len(lossy)} tensor(s) keep the adapter's delta with a relative error above "
        f"{LOSSY_RELATIVE_ERROR[worst.dtype]:g}: {lossy[0]!r} in {worst.dtype} has "
        f"{worst.relative_error:.3g}. Store them in float32: --float32-where-lossy."
    )
