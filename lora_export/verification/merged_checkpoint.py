"""A merged checkpoint compared with the unmerged adapter, both run by transformers.

    base + PEFT (unmerged, float32)      →  expected outputs, effect of the adapter
    merged checkpoint (loaded, float32)  →  outputs
    metrics + tolerance of its dtype     →  verdict

The first model is closed before the second is opened, and what either needs is estimated first. A
model that does not fit, or that nobody here can feed, stays ``unverified`` and says so.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.combine import drop_matching
from lora_export.adapters.formats.delta import DELTA
from lora_export.adapters.zero_updates import trained_items
from lora_export.core.errors import (
    AdapterError,
    CheckpointError,
    LoraExportError,
    UnsupportedError,
    UsageError,
)
from lora_export.core.memory import available_bytes
from lora_export.exports.padding import padded_as
from lora_export.exports.plan import count_labels, for_task
from lora_export.graph.spec import tasks
from lora_export.graph.spec.signature import Input, Signature, signature_of
from lora_export.ondevice.judge.golden_checks import judge_outputs
from lora_export.ondevice.judge.golden_files import valid_rows
from lora_export.ondevice.judge.metrics import relative_l2
from lora_export.runtime.reference import Reference, estimate_bytes
from lora_export.verification.inputs.random_inputs import CASES, DECODER_IDS, make_cases
from lora_export.weights.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from lora_export.adapters.canonical import Adapter
    from lora_export.graph.spec.tasks import Task
    from lora_export.ondevice.judge.golden_files import Case
    from lora_export.ondevice.judge.tolerances import Verdict

    Outputs = list[npt.NDArray[np.float32]]

__all__ = ["MergedComparison", "not_compared", "verify_merged"]

_COPIES: Final = 1.5
"""The float32 weights of one model, and what loading takes beside them."""


@dataclass(frozen=True)
class MergedComparison:
    """The verdict on a merged checkpoint; None where the outputs were not compared.

    Attributes:
        verdict: ``pass``, ``fail``, ``ambiguous`` or ``unverified``.
        reason: Why.
        dtype: What most of the weights are stored in.
        relative_l2: The relative L2 error of the outputs; None where it is not finite, too.
        tolerance: The largest that passes.
        effect: What the adapter changes, relative L2.
        task: The task whose model was run.
    """

    verdict: Verdict
    reason: str
    dtype: str | None = None
    relative_l2: float | None = None
    tolerance: float | None = None
    effect: float | None = None
    task: str | None = None


def verify_merged(
    base: Checkpoint,
    merged: Path,
    adapter: Adapter,
    *,
    dtype: str,
    drop: Sequence[str] = (),
    vocab_size: int | None = None,
    seed: int = 0,
    allow_no_effect: bool = False,
) -> MergedComparison:
    """Compare a merged checkpoint with the unmerged adapter.

    Args:
        base: The base, as it is on disk.
        merged: The folder of the merged checkpoint.
        adapter: The adapter as it was read.
        dtype: What most of the merged weights are stored in; decides the tolerance.
        drop: Patterns (``fnmatch``) of the adapter's tensors that were left out of the merge.
        vocab_size: The number of tokens that the adapter brings, where that is not the base's.
        seed: Seeds the inputs.
        allow_no_effect: Whether the adapter may change nothing.

    Raises:
        MissingRuntimeError: torch, transformers or PEFT is not installed.
    """
    held = open_checkpoint(merged)
    try:
        task = tasks.detect(held.config, (adapter.task_type,))
    except (UnsupportedError, UsageError) as error:
        return not_compared(error.message)
    tokens = sum(batch * length for batch, length in CASES)
    needed, free = estimate_bytes(base, tokens=tokens, copies=_COPIES), available_bytes()
    if free is not None and needed > free:
        return not_compared(
            f"the comparison needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB "
            "are free"
        )
    if drop:  # the reference has to leave the same tensors out: PEFT reads another file then
        adapter = replace(drop_matching(adapter, drop), renamed=True)
    try:
        cases, expected, effect = _expected(
            for_task(padded_as(base, held), task), task, adapter, vocab_size=vocab_size, seed=seed
        )
    except (AdapterError, CheckpointError, UnsupportedError) as error:
        return not_compared(f"the reference does not run: {error.message}")
    try:
        actual = _outputs_of(for_task(held, task), task, cases)
    except LoraExportError as error:
        return MergedComparison("fail", error.message)
    if different := _other_shape(actual, expected):
        return MergedComparison("fail", different)
    verdict, row = judge_outputs(
        cases, actual, expected,
        per_token=task.per_token, choices=task.classifies, dtype=dtype,
        effect=effect, allow_no_effect=allow_no_effect,
    )  # fmt: skip
    metrics = row["metrics"]
    return MergedComparison(
        verdict,
        row["reason"],
        dtype=dtype,
        relative_l2=metrics["relative_l2"] if metrics is not None else None,
        tolerance=row["tolerance"],
        effect=effect,
        task=task.name,
    )


def not_compared(reason: str) -> MergedComparison:
    """Return the verdict on a merge that was not compared."""
    return MergedComparison("unverified", reason)


def _expected(
    base: Checkpoint, task: Task, adapter: Adapter, *, vocab_size: int | None, seed: int
) -> tuple[list[Case], Outputs, float | None]:
    """Return inputs, what the unmerged adapter makes of them, and its effect."""
    reference = Reference(base, task, adapter=adapter, labels_count=None, vocab_size=vocab_size)
    try:
        cases = _cases(reference.model, task, seed)
        outputs = [reference.run(case.feeds) for case in cases]
        measured = trained_items(adapter.items) or adapter.computed or adapter.format == DELTA
        if not measured:  # of heads and rows alone, scale 0 says nothing
            return cases, outputs, None
        with reference.without_low_rank():
            plain = [reference.run(case.feeds) for case in cases]
    finally:
        reference.close()
    rows = [
        [
            valid_rows(output, case, per_token=task.per_token)
            for output, case in zip(side, cases, strict=True)
        ]
        for side in (plain, outputs)
    ]
    return cases, outputs, relative_l2(rows[0], rows[1])


def _outputs_of(merged: Checkpoint, task: Task, cases: Sequence[Case]) -> Outputs:
    """Return the outputs of the merged checkpoint for the inputs."""
    width = count_labels(task, merged.config, (), merged.tensors)
    model = Reference(merged, task, adapter=None, labels_count=width)
    try:
        return [model.run(case.feeds) for case in cases]
    finally:
        model.close()


def _cases(model: Any, task: Task, seed: int) -> list[Case]:
    """Return seeded inputs for a model of transformers.

    Raises:
        UnsupportedError: It reads something that is not known here.
    """
    accepted = inspect.signature(model.forward).parameters
    signature = signature_of(model.config, task, accepted, dtype="float32")
    if task.encoder_decoder:
        text = Input(DECODER_IDS, "int64", ("batch", "sequence"))
        signature = Signature((*signature.inputs, text), signature.outputs)
    config = model.config.to_dict()
    return make_cases(config, signature, seed=seed, left_padding=task.causal)


def _other_shape(actual: Outputs, expected: Outputs) -> str | None:
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.shape != theirs.shape:
            shapes = f"{list(ours.shape)}, the unmerged adapter {list(theirs.shape)}"
            return f"the merged checkpoint returns {shapes}"
    return None
