"""The whole story on one page: from a base and its adapters to a verified export directory.

    recipe → checkpoint + adapters → graph (weight-free) → deltas (all resolved) → weights
           → export directory → parity → latency

Each stage is a function of the layers below; configuration stops here.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.adapters.resolve import resolve
from lora_export.base import targets
from lora_export.base.errors import (
    AdapterError,
    ExportDirectoryError,
)
from lora_export.base.files import staging_folder, sync_folder
from lora_export.base.manifest import Manifest, is_export, read_manifest
from lora_export.base.progress import Progress, Silent
from lora_export.exports.create import create_export
from lora_export.exports.extend import add_adapter
from lora_export.exports.plan import (
    choose_dtype,
    count_labels,
    head_parameters,
    match_base,
    require_complete,
    with_padding,
)
from lora_export.graph import tasks
from lora_export.graph.export import export_graph
from lora_export.runtime.ort import require_onnxruntime
from lora_export.runtime.reference import require_reference
from lora_export.steps import Outcome, labels_for, read_spec
from lora_export.verify.export import Evidence, measure_latency, verify_export
from lora_export.weights.checkpoint import Checkpoint, open_checkpoint
from lora_export.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.resolve import Resolved
    from lora_export.graph.tasks import Task
    from lora_export.graph.template import GraphTemplate
    from lora_export.recipe import Recipe

__all__ = ["merge_and_build"]


@dataclass(frozen=True)
class _Plan:
    """Everything that is known before anything is written."""

    checkpoint: Checkpoint
    task: Task
    dtype: str
    template: GraphTemplate
    resolved: tuple[Resolved, ...]
    labels: tuple[tuple[str, ...] | None, ...]


def merge_and_build(recipe: Recipe, progress: Progress | None = None) -> Outcome:
    """Build the export directory that `recipe` describes, and verify it as far as it asks to.

    A new directory appears complete or not at all. An existing export of the same base receives the
    recipe's adapters, and keeps those that it holds under other names.

    Raises:
        LoraExportError: See the class of the error; nothing half-written is left.
    """
    tell = progress or Silent()
    output = _readable(recipe.path(recipe.output))
    _require_runtimes(recipe)
    existing = _existing_export(output)
    checkpoint = open_checkpoint(recipe.path(recipe.base), source=recipe.base)
    adapters = _read_adapters(recipe)
    with _in_background(checkpoint) as fingerprinted:
        plan = _plan(recipe, checkpoint, adapters, tell)
        if existing is not None:
            _require_same_base(existing, plan, fingerprinted(), output)
            manifest = _add_all(output, plan, tell, replace=True)
            return _verified(output, manifest, plan, recipe, tell)
        with staging_folder(output.parent, output.name) as staging:
            base_plan = match_base(
                plan.template.parameters,
                plan.template.prefix,
                checkpoint.tensors,
                resizable=head_parameters(plan.task),
            )
            require_complete(base_plan.missing, plan.resolved, checkpoint.source)
            create_export(
                staging,
                plan.checkpoint,
                plan.template,
                base_plan,
                task=plan.task.name,
                dtype=plan.dtype,
                labels=plan.labels[0] if plan.labels else recipe.labels,
                fingerprint=fingerprinted,
                progress=tell,
            )
            manifest = _add_all(staging, plan, tell, replace=False)
            outcome = _verified(staging, manifest, plan, recipe, tell)
            _publish(staging, output)
    return Outcome(output, outcome.manifest, outcome.reports)


@contextlib.contextmanager
def _in_background(checkpoint: Checkpoint) -> Iterator[Callable[[], str]]:
    """Compute the fingerprint while the graph is traced; an error elsewhere stops it."""
    stop = threading.Event()

    def keep_on(_: int) -> None:
        if stop.is_set():
            raise _Stopped

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fingerprint, checkpoint, keep_on)
        try:
            yield future.result
        finally:
            stop.set()


class _Stopped(Exception):  # noqa: N818  (ends a thread; nobody sees it)
    """The fingerprint is not needed any more."""


def _readable(path: Path) -> Path:
    """Return the path relative to the working directory where it is below it, else absolute."""
    whole, here = path.resolve(), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def _plan(
    recipe: Recipe, checkpoint: Checkpoint, adapters: Sequence[Adapter], tell: Progress
) -> _Plan:
    target = targets.by_name(recipe.targets[0] if recipe.targets else targets.DEFAULT_TARGET)
    peft_types = tuple(adapter.task_type for adapter in adapters)
    task = (
        tasks.by_name(recipe.task) if recipe.task else tasks.detect(checkpoint.config, peft_types)
    )
    checkpoint = with_padding(checkpoint, task)
    dtype = choose_dtype(checkpoint, recipe.dtype, target)
    labels_count = count_labels(task, checkpoint.config, adapters)
    tell.start("graph")
    template = export_graph(
        checkpoint.config,
        task,
        dtype=dtype,
        opset=recipe.opset or target.opset,
        labels_count=labels_count,
    )
    resolved = tuple(
        resolve(
            adapter,
            template.parameters,
            prefix=template.prefix,
            drop=spec.drop,
            resizable=head_parameters(task),
        )
        for adapter, spec in zip(adapters, recipe.adapters, strict=True)
    )
    labels = tuple(
        labels_for(each.adapter, task, spec.labels or recipe.labels)
        for each, spec in zip(resolved, recipe.adapters, strict=True)
    )
    return _Plan(checkpoint, task, dtype, template, resolved, labels)


def _read_adapters(recipe: Recipe) -> list[Adapter]:
    adapters = [read_spec(spec, recipe.folder) for spec in recipe.adapters]
    names = [adapter.name for adapter in adapters]
    if twice := next((name for name in names if names.count(name) > 1), None):
        msg = f"two adapters are called {twice!r}"
        raise AdapterError(msg, hint="Name them apart: --adapter NAME=PATH.")
    return adapters


def _existing_export(output: Path) -> Manifest | None:
    """Return the manifest of what is at `output`; None where nothing is there yet."""
    if is_export(output):
        return read_manifest(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        msg = f"{str(output)!r} exists and is not an export directory"
        raise ExportDirectoryError(msg, hint="Choose another --out; nothing was changed.")
    return None


def _require_same_base(existing: Manifest, plan: _Plan, digest: str, output: Path) -> None:
    wanted = (digest, plan.task.name, plan.dtype, plan.template.opset)
    held = (
        existing.base.fingerprint,
        existing.base.task,
        existing.base.dtype,
        existing.graphs["base"].opset,
    )
    for what, old, new in zip(("base", "task", "dtype", "opset"), held, wanted, strict=True):
        if old != new:
            msg = f"{str(output)!r} is an export of another {what}: {old}, not {new}"
            raise ExportDirectoryError(msg, hint="Choose another --out, or remove that directory.")


def _add_all(root: Path, plan: _Plan, tell: Progress, *, replace: bool) -> Manifest:
    for each, labels in zip(plan.resolved, plan.labels, strict=True):
        add_adapter(
            root,
            each,
            checkpoint=plan.checkpoint,
            labels=labels,
            replace=replace,
            progress=tell,
        )
    return read_manifest(root)


def _verified(
    root: Path, manifest: Manifest, plan: _Plan, recipe: Recipe, tell: Progress
) -> Outcome:
    """Verify and measure what the recipe asks for; the verdicts go into reports and manifest."""
    reports: dict[str, Any] = {}
    names = [each.adapter.name for each in plan.resolved]
    if recipe.verify.enabled:
        evidence = Evidence(
            checkpoint=plan.checkpoint,
            adapters={each.adapter.name: each.adapter for each in plan.resolved},
            dataset=recipe.path(recipe.verify.dataset) if recipe.verify.dataset else None,
            seed=recipe.verify.seed,
            allow_no_effect=recipe.verify.allow_no_effect,
        )
        manifest, reports["parity"] = verify_export(root, ["base", *names], evidence, tell)
    if recipe.latency.enabled and names:
        settings = recipe.latency
        manifest, reports["latency"] = measure_latency(
            root,
            names,
            plan.checkpoint.config,
            batch=settings.batch,
            length=settings.length,
            rounds=settings.rounds,
            max_ratio=settings.max_ratio,
            seed=recipe.verify.seed,
            progress=tell,
        )
    return Outcome(root, manifest, reports)


def _require_runtimes(recipe: Recipe) -> None:
    """Ask for what the verification needs before the work begins, not after."""
    if recipe.verify.enabled:
        require_reference()
    if recipe.verify.enabled or recipe.latency.enabled:
        require_onnxruntime()


def _publish(staging: Path, output: Path) -> None:
    """Move the finished directory into place."""
    if output.is_dir():
        output.rmdir()  # empty, as was checked
    staging.rename(output)
    sync_folder(output.parent)
