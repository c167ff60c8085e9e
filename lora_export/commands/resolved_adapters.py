"""The adapters of a command, resolved against the model of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.adapters.naming import to_model_names
from lora_export.adapters.resolve import ModelNames, Resolved, resolve
from lora_export.commands.adapter_inputs import LoadedAdapter, reload_adapter
from lora_export.core.adapter_names import adapter_name_from
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import AdapterError, UsageError
from lora_export.core.hub import local_path
from lora_export.exports.plan import head_parameters, head_width
from lora_export.exports.stored_values import parameters_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.ties import TieGroup
    from lora_export.core.combined_record import PartRecord
    from lora_export.core.manifest import AdapterRecord, Manifest
    from lora_export.core.name_conversions import Conversion
    from lora_export.core.parameters import Parameter
    from lora_export.graph.spec.tasks import Task


__all__ = ["ResolvedAdapter", "checked_labels", "find_adapters", "resolve_adapters"]


@dataclass(frozen=True)
class ResolvedAdapter:
    """An adapter that can be merged: resolved against the model, its labels known."""

    resolved: Resolved
    labels: tuple[str, ...] | None
    given: LoadedAdapter


def resolve_adapters(
    given: Sequence[LoadedAdapter],
    parameters: Sequence[Parameter],
    *,
    prefix: str,
    conversions: Sequence[Conversion],
    config: Mapping[str, Any] | None,
    task: Task,
    labels: Sequence[str] | None = None,
    ties: Sequence[TieGroup] = (),
) -> tuple[ResolvedAdapter, ...]:
    """Resolve adapters against the parameters of a graph.

    Args:
        given: The adapters, with their lines in the recipe.
        parameters: What the base graph reads.
        prefix: ``base_model_prefix`` with its dot.
        conversions: How transformers loads a checkpoint of the model.
        config: The base's ``config.json``, where it is at hand.
        task: The task.
        labels: Names of the classes for adapters whose line has none.
        ties: Parameters that the base ties and the graph holds apart.
    """
    names = ModelNames(parameters, prefix)
    return tuple(
        ResolvedAdapter(
            resolve(
                to_model_names(
                    each.adapter, names, conversions, config=config, drop=each.spec.drop
                ),
                parameters,
                prefix=prefix,
                drop=each.spec.drop,
                resizable=head_parameters(task),
                ties=ties,
            ),
            checked_labels(task, parameters, each.spec.labels or labels, adapter=each.adapter),
            each,
        )
        for each in given
    )


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
        raise UsageError(msg, hint="Leave --labels (labels) out.")
    if width != len(labels):
        msg = f"{len(labels)} labels are given, but the head has {width} outputs"
        raise UsageError(msg, hint="Give as many names as the head has outputs, in their order.")
    return tuple(labels)


def find_adapters(
    output: Path,
    manifest: Manifest,
    specs: Sequence[AdapterSpec],
    config: Mapping[str, Any],
    *,
    only: Collection[str] | None = None,
) -> dict[str, Adapter]:
    """Read the adapters of an export, or `only` some, from where `specs` or else the manifest says.

    Raises:
        AdapterError: One is not there, or not of this export.
    """
    given = {spec.name or adapter_name_from(Path(spec.source).name): spec for spec in specs}
    records = manifest.adapters.values()
    parts = {part.name for record in records if record.combined for part in record.combined.parts}
    if unknown := sorted(set(given) - set(manifest.adapters) - parts):
        msg = f"the export has no adapter {unknown[0]!r}"
        raise AdapterError(msg, hint=f"It has: {', '.join(manifest.adapters) or 'none'}.")

    def locate(name: str, record: AdapterRecord | PartRecord) -> AdapterSpec:
        if name in given:
            return given[name]
        folder = local_path(record.source, output)
        if not folder.exists():
            msg = f"adapter {name!r} was not found at {str(folder)!r}"
            raise AdapterError(msg, hint=f"Pass its new path: --adapter {name}=PATH")
        return AdapterSpec(source=str(folder), format=record.format)

    names = ModelNames(parameters_of(manifest), manifest.base.prefix)
    return {
        name: to_model_names(
            reload_adapter(name, record, locate, base_config=config),
            names,
            manifest.base.conversions,
            config=config,
            drop=record.dropped,
        )
        for name, record in manifest.adapters.items()
        if only is None or name in only
    }
