"""``merge``: a base and an adapter to a merged Hugging Face checkpoint, and back.

    checkpoint + adapter → parameters (by names and shapes) → updates (all resolved)
                         → shards, config, tokenizer → record → renamed into place

No torch, no graph. The way back is no subtraction, which would not give the same bits: it writes
the base again from the base, and the recorded fingerprint proves that it is the one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.adapters.fit import header_parameters
from lora_export.adapters.zero_updates import describe_zero, trained_items, zero_parameters
from lora_export.commands.adapter_inputs import notes_on_resolved
from lora_export.commands.adapter_notes import (
    notes_on_base,
    notes_on_missing,
    notes_on_unread,
    opened_base,
)
from lora_export.commands.arguments import as_specs
from lora_export.commands.merge_job import Job, prepare_job
from lora_export.commands.merge_recording import (
    encoded,
    lossy_tensors,
    make_record,
    plan_fingerprint,
    warn_of_loss,
)
from lora_export.commands.merge_verify import require_torch, verify_job
from lora_export.commands.open_base import note_on_tokenizer, open_base
from lora_export.core.dtypes import by_name
from lora_export.core.errors import CheckpointError, InputError, UnsupportedError
from lora_export.core.files import is_vacant, publish_folder, staging_folder, write_synced
from lora_export.core.hub import local_path
from lora_export.core.merge_record import RECORD_NAME, MergedVerification, MergeRecord, read_record
from lora_export.core.progress import Progress, Silent
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.companion_files import companion_files
from lora_export.weights.companion_writer import write_companions
from lora_export.weights.effect import ZERO_UPDATE, missing_effect, require_effect
from lora_export.weights.label_names import named_classes, note_on_names
from lora_export.weights.merge_plan import MergePlan, measure_lossy, plan_merge
from lora_export.weights.merged_config import merged_config
from lora_export.weights.own_companions import OwnCompanions, own_companions
from lora_export.weights.shards import write_sharded
from lora_export.weights.special_tokens import with_special_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.commands.recipe import CombineSpec
    from lora_export.core.adapter_spec import AdapterSpec
    from lora_export.core.json_file import JsonObject

__all__ = ["MAX_SHARD_BYTES", "Merge", "merge_checkpoint", "unmerge_checkpoint"]

MAX_SHARD_BYTES: Final = 5 * 10**9


@dataclass(frozen=True)
class Merge:
    """The result of `merge_checkpoint`.

    Attributes:
        output: The merged checkpoint.
        record: What lies in it as ``lora_export.merge.json``.
        lossy: The tensors that lost more of the delta than the table of `fidelity` allows, worst
            first.
        notes: What the user should know of the adapters.
    """

    output: Path
    record: MergeRecord
    lossy: tuple[str, ...]
    notes: tuple[str, ...] = ()


def merge_checkpoint(
    base: str | Path,
    adapters: Sequence[AdapterSpec | str | Path],
    output: str | Path,
    *,
    base_override: str | Path | None = None,
    combine: CombineSpec | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    float32_where_lossy: bool = False,
    allow_no_effect: bool = False,
    verify: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> Merge:
    """Merge an adapter into a base and save the result as a Hugging Face checkpoint.

    Args:
        base: The base checkpoint, a folder or an id of the hub.
        adapters: The adapter, as a list of one, or those that `combine` makes one of: specs,
            ``"[NAME=]PATH"`` or paths. Their labels name the classes of the head.
        output: Where the checkpoint goes: nothing, or an empty folder.
        base_override: The original of a quantized base, whose weights the adapter is merged into.
        combine: How several adapters become one.
        dtype: The dtype of all floating tensors; each keeps its own where it is None.
        max_shard_bytes: How large a file may become.
        float32_where_lossy: Store in float32 what would lose too much of the delta in its dtype.
        allow_no_effect: Whether the adapter may change nothing.
        verify: Whether to compare the result with the unmerged adapter, in torch, before it is
            published.
        strict: Whether it is an error that a comparison is ambiguous or cannot be made, or that the
            adapter names another base.
        progress: Told what happens.

    Raises:
        MissingRuntimeError: `verify` is set, and torch, transformers or PEFT is not installed.
        ParityError: The adapter changes nothing, or the comparison failed.
        LoraExportError: See the class of the error; `output` is as it was.
    """
    tell, output = progress or Silent(), Path(output)
    _require_vacant(output)
    if verify:
        require_torch()
    wanted = _floating(dtype)
    checkpoint = open_base(str(base), None if base_override is None else str(base_override))
    job = prepare_job(checkpoint, as_specs(adapters), combine)
    given, opened = job.given.originals, opened_base(checkpoint)
    notes = notes_on_base(given, opened, tell, strict=strict)
    notes = (*notes, *notes_on_missing(given, opened, tell))
    if (lacking := note_on_tokenizer(checkpoint)) is not None:
        tell.note(f"note: {lacking}")
        notes = (*notes, lacking)
    model_type = str(checkpoint.config["model_type"])
    notes = (*notes, *notes_on_unread(given, model_type, tell, checkpoint.tensors))
    notes = (*notes, *_notes_on_zero(job, tell, allow_no_effect=allow_no_effect))
    brought, config = _companions(job, combine, wanted)
    for note in brought.notes:
        tell.note(f"note: {note}")
    notes = (*notes, *brought.notes, *notes_on_resolved([job.resolved], tell))
    plan, kept = _plan_kept(job, wanted, tell, float32_where_lossy=float32_where_lossy)
    with staging_folder(output.parent, output.name) as staging:
        digests = _write(staging, plan, max_shard_bytes, "merging", tell)
        no_effect = missing_effect(job.resolved, plan, digests, prefix=job.prefix)
        require_effect(no_effect, job.resolved.adapter.source, allowed=allow_no_effect)
        write_companions(staging, job.checkpoint, config, brought)
        verification = MergedVerification()
        if verify:
            tell.start("comparing with PEFT")
            verification = verify_job(
                job, checkpoint, staging,
                dtype=wanted, allow_no_effect=allow_no_effect, strict=strict,
            )  # fmt: skip
        record = make_record(
            job, plan, digests,
            output=output, dtype=wanted, kept=kept, no_effect=no_effect, notes=notes,
            verification=verification,
        )  # fmt: skip
        record = record.model_copy(update={"companions": list(brought.taken)})
        write_synced(staging / RECORD_NAME, encoded(record))
        publish_folder(staging, output)
    lossy = lossy_tensors(record)
    warn_of_loss(lossy, record, tell)
    return Merge(output, record, lossy, notes)


def _plan_kept(
    job: Job, dtype: str | None, tell: Progress, *, float32_where_lossy: bool
) -> tuple[MergePlan, frozenset[str]]:
    """Return the plan to write, and the parameters that are kept in float32."""
    plan = _plan(job, dtype, frozenset())
    if not float32_where_lossy:
        return plan, frozenset()
    tell.start("measuring what was stored")
    names = {job.prefix + p.name: p.name for p in job.parameters}
    kept = frozenset(names.get(name, name) for name in measure_lossy(plan))
    return _plan(job, dtype, kept), kept


def unmerge_checkpoint(
    merged: str | Path,
    base: str | Path,
    output: str | Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> str:
    """Write the base of a merged checkpoint again, bit for bit; return its fingerprint.

    Args:
        merged: What `merge_checkpoint` wrote.
        base: The base that it was merged from.
        output: Where the checkpoint goes: nothing, or an empty folder.
        max_shard_bytes: How large a file may become.
        progress: Told what happens.

    Raises:
        CheckpointError: `base` is not the one that `merged` was made from.
        LoraExportError: See the class of the error; `output` is as it was.
    """
    output = Path(output)
    record = read_record(Path(merged))
    _require_vacant(output)
    checkpoint = open_checkpoint(local_path(str(base)), source=str(base))
    plan = plan_merge(checkpoint.stored, header_parameters(checkpoint.stored), None)
    with staging_folder(output.parent, output.name) as staging:
        _write(staging, plan, max_shard_bytes, "base", progress or Silent())
        digest = plan_fingerprint(plan)
        if digest != record.base.fingerprint:
            msg = (
                f"{str(base)!r} is not the base of {str(merged)!r}: its fingerprint is "
                f"{digest[:16]}…, the recorded one {record.base.fingerprint[:16]}…"
            )
            raise CheckpointError(msg, hint=f"It was merged from {record.base.source!r}.")
        quantized = checkpoint.quantized
        write_companions(staging, checkpoint, quantized.config if quantized else checkpoint.config)
        publish_folder(staging, output)
    return digest


def _notes_on_zero(job: Job, tell: Progress, *, allow_no_effect: bool) -> tuple[str, ...]:
    """Return a note on updates that are zero, and tell it.

    Raises:
        ParityError: All of them are, and that is not allowed.
    """
    adapter = job.resolved.adapter
    items = trained_items(
        item for update in job.resolved.updates for item in (update.low_rank, update.added)
    )
    zero = zero_parameters(items)
    if items and len(zero) == len(items):
        require_effect(ZERO_UPDATE, adapter.source, allowed=allow_no_effect)
    note = describe_zero(zero, len(items), adapter.source)
    if note is None:
        return ()
    tell.note(f"note: {note}")
    return (note,)


def _companions(
    job: Job, combine: CombineSpec | None, dtype: str | None
) -> tuple[OwnCompanions, JsonObject]:
    """Return the adapter's companions, and the config of the merged checkpoint."""
    base = job.checkpoint.config
    brought = own_companions(
        job.given.originals,
        companion_files(job.checkpoint.folder),
        preferred=combine.head_from if combine is not None else None,
        rows=job.resolved.vocabulary.after if job.resolved.vocabulary is not None else None,
    )
    config = merged_config(
        base,
        task_type=job.resolved.adapter.task_type,
        head_width=job.head_width,
        labels=job.given.spec.labels,
        dtype=dtype,
        own=brought.config,
        vocabulary=job.resolved.vocabulary,
    )
    if job.head_width is not None and job.given.spec.labels is None:
        names = named_classes(config) or ()
        lost = note_on_names(job.resolved.adapter.name, names, base)
        brought = replace(brought, notes=(*brought.notes, *([lost] if lost is not None else [])))
    return brought, with_special_tokens(config, brought.tokens)


def _floating(dtype: str | None) -> str | None:
    if dtype is None:
        return None
    row = by_name(dtype)
    if not row.floating:
        msg = f"a merged checkpoint cannot be stored in {row.name}"
        raise UnsupportedError(msg, hint="Choose float32, float16 or bfloat16.")
    return row.name


def _plan(job: Job, dtype: str | None, kept: frozenset[str]) -> MergePlan:
    return plan_merge(
        job.checkpoint.tensors,
        job.parameters,
        job.resolved,
        dtype=dtype,
        prefix=job.prefix,
        float32=kept,
        copies=job.copies,
    )


def _write(
    staging: Path, plan: MergePlan, max_shard_bytes: int, what: str, tell: Progress
) -> dict[str, str]:
    tell.start(what, sum(entry.nbytes for entry in plan.entries))
    return write_sharded(
        staging,
        plan.entries,
        max_shard_bytes=max_shard_bytes,
        hashed=plan.hashed,
        advance=tell.advance,
    )


def _require_vacant(output: Path) -> None:
    if not is_vacant(output):
        msg = f"{str(output)!r} exists and is not an empty folder"
        raise InputError(msg, hint="Choose another --out; nothing was changed.")
