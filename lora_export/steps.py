"""What building an export and maintaining one have in common."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_export.adapters.delta import require_finite_tensors
from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.resolve import Resolved, resolve
from lora_export.base.errors import LatencyError, ParityError, UsageError
from lora_export.base.hub import hub_id_of, local_path
from lora_export.base.manifest import Manifest, check_adapter_name, read_manifest
from lora_export.exports.extend import add_adapter
from lora_export.exports.plan import head_parameters, head_width, require_complete

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.base.parameters import Parameter
    from lora_export.base.progress import Progress
    from lora_export.graph.tasks import Task
    from lora_export.recipe import AdapterSpec
    from lora_export.weights.checkpoint import Checkpoint

__all__ = [
    "Outcome",
    "Ready",
    "add_all",
    "checked_labels",
    "prepare",
    "read_spec",
    "recorded_source",
]


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        output: The export directory.
        manifest: Its manifest.
        reports: The reports that were written, by name.
    """

    output: Path
    manifest: Manifest
    reports: dict[str, Any] = field(default_factory=dict)

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 0, or the code of the gate that failed; `strict` fails what is ambiguous."""
        bad = {"fail", "ambiguous"} if strict else {"fail"}
        for report, error in (("parity", ParityError), ("latency", LatencyError)):
            rows = self.reports.get(report, {}).get("graphs", {}).values()
            if any(row["verdict"] in bad for row in rows):
                return error.exit_code
        return 0


def read_spec(
    spec: AdapterSpec, folder: Path, *, base_config: Mapping[str, Any] | None = None
) -> Adapter:
    """Read the adapter of a recipe.

    Args:
        spec: Its line.
        folder: Where relative paths are taken from.
        base_config: The base's ``config.json``, where it is at hand; some formats need it.
    """
    path = local_path(spec.source, folder)
    return read_adapter(
        path,
        name=check_adapter_name(spec.name or name_of(path)),
        source=spec.source,
        format=spec.format,
        alpha=spec.alpha,
        enable_lora=spec.enable_lora,
        base_config=base_config,
    )


def name_of(path: Path) -> str:
    """Return the name of an adapter that was given none: that of its folder or repository."""
    cached = hub_id_of(path)
    if path.is_file():
        return path.stem
    return path.resolve().name if cached is None else cached.partition("@")[0].rpartition("/")[2]


@dataclass(frozen=True)
class Ready:
    """An adapter that can be merged: resolved against the model, its labels known."""

    resolved: Resolved
    labels: tuple[str, ...] | None


def prepare(
    adapters: Sequence[Adapter],
    specs: Sequence[AdapterSpec],
    parameters: Sequence[Parameter],
    *,
    prefix: str,
    task: Task,
    labels: Sequence[str] | None = None,
) -> tuple[Ready, ...]:
    """Resolve adapters against the parameters of a graph.

    Args:
        adapters: The adapters.
        specs: Their lines in the recipe, in the same order.
        parameters: What the base graph reads.
        prefix: ``base_model_prefix`` with its dot.
        task: The task.
        labels: Names of the classes for adapters whose line has none.
    """
    return tuple(
        Ready(
            resolve(
                adapter,
                parameters,
                prefix=prefix,
                drop=spec.drop,
                resizable=head_parameters(task),
            ),
            checked_labels(task, parameters, spec.labels or labels, adapter=adapter),
        )
        for adapter, spec in zip(adapters, specs, strict=True)
    )


def add_all(
    root: Path,
    ready: Sequence[Ready],
    *,
    output: Path,
    checkpoint: Checkpoint | None,
    replace: bool,
    progress: Progress,
) -> Manifest:
    """Add adapters to the export in `root` one after the other; none if one is incomplete.

    Args:
        root: The export, or the folder that becomes it.
        ready: The adapters.
        output: Where the export is or will be; the manifest records sources relative to it.
        checkpoint: The base, where it is at hand.
        replace: Whether adapters of the same names may be replaced.
        progress: Told about bytes.
    """
    manifest = read_manifest(root)
    resolved = [each.resolved for each in ready]
    require_complete(manifest.graphs["base"].missing, resolved, manifest.base.source)
    if len(ready) > 1:  # a single one is checked as it is merged
        for one in resolved:
            require_finite_tensors(one.adapter)
    for each in ready:
        manifest = add_adapter(
            root,
            each.resolved,
            source=recorded_source(each.resolved.adapter.folder, output),
            checkpoint=checkpoint,
            labels=each.labels,
            replace=replace,
            progress=progress,
        )
    return manifest


def recorded_source(folder: Path, output: Path) -> str:
    """Return where `folder` is: its id on the hub, or its path seen from the export.

    A tree that is moved keeps its links; what came from the hub is named with its commit.
    """
    return hub_id_of(folder) or os.path.relpath(folder.resolve(), output.resolve())


def checked_labels(
    task: Task,
    parameters: Sequence[Parameter],
    labels: Sequence[str] | None,
    *,
    adapter: Adapter | None = None,
) -> tuple[str, ...] | None:
    """Return the labels, required to be as many as the adapter's or the base's head is wide."""
    if labels is None:
        return None
    own = [each.shape[0] for each in parameters if each.name in task.label_parameters]
    brought = head_width(task, adapter) if adapter is not None else None
    width = brought or next(iter(own), None)
    if width is None:
        msg = f"the task {task.name!r} has no labels"
        raise UsageError(msg, hint="Leave labels (--labels) out.")
    if width != len(labels):
        msg = f"{len(labels)} labels are given, but the head has {width} outputs"
        raise UsageError(msg, hint="Give as many names as the head has outputs, in their order.")
    return tuple(labels)
