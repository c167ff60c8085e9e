"""An adapter on disk, read for an export that need not contain it."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING, Any

from lora_export.adapters.naming import to_model_names
from lora_export.adapters.read_spec import read_spec
from lora_export.adapters.resolve import ModelNames, resolve
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.hub import local_path
from lora_export.exports.base_config import has_base_config, read_base_config
from lora_export.exports.compatibility import require_base, require_task
from lora_export.exports.plan import head_parameters, require_complete
from lora_export.exports.stored_values import parameters_of
from lora_export.exports.untied_export import recorded_ties
from lora_export.graph.spec import tasks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.adapters.resolve import Resolved
    from lora_export.core.manifest import Manifest

__all__ = ["recorded_source", "resolve_source"]


def resolve_source(
    export_dir: Path, manifest: Manifest, name: str, source: AdapterSpec
) -> Resolved:
    """Read an adapter's headers and resolve it against the base graph of an export.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        name: What the adapter is called, whatever `source` says.
        source: Where it is, and what its files do not say.

    Raises:
        AdapterError: It is missing or damaged, made for another base, or fits no parameter.
        CheckpointError: Neither it nor the base has a parameter of the model.
        UnsupportedError: It is of a kind that cannot be merged.
        UsageError: It was trained for another task, or an option does not fit it.
    """
    config = _base_config(export_dir)
    adapter = read_spec(source.model_copy(update={"name": name}), base_config=config)
    require_task(manifest, adapter)
    parameters, prefix = parameters_of(manifest), manifest.base.prefix
    names, conversions = ModelNames(parameters, prefix), manifest.base.conversions
    resolved = resolve(
        to_model_names(adapter, names, conversions, config=config, drop=source.drop),
        parameters,
        prefix=prefix,
        drop=source.drop,
        resizable=head_parameters(tasks.by_name(manifest.base.task)),
        ties=recorded_ties(manifest),
    )
    require_base(export_dir, manifest, resolved, [adapter], None)
    require_complete(manifest.base_graph.missing, [resolved], manifest.base.source)
    return resolved


def recorded_source(export_dir: Path, manifest: Manifest, name: str) -> AdapterSpec:
    """Return where an adapter of the export was read from, with the settings it was read with.

    Raises:
        AdapterError: It is not there any more.
        UnsupportedError: It was combined of several.
    """
    record = manifest.adapters[name]
    if record.combined is not None:
        msg = f"adapter {name!r} was combined of {len(record.combined.parts)} adapters"
        raise UnsupportedError(msg, hint="Use the graph that the export has of it.")
    path = local_path(record.source, export_dir)
    if not path.exists():
        msg = f"adapter {name!r} was not found at {str(path)!r}"
        raise AdapterError(msg, hint=f"Pass its new path: adapters={{{name!r}: PATH}}.")
    return AdapterSpec(
        source=str(path),
        scale=1.0 if record.scale is None else record.scale,
        drop=[glob.escape(each) for each in record.dropped],
        format=record.format,
        alpha=record.alpha,
        enable_lora=record.enable_lora,
    )


def _base_config(export_dir: Path) -> Mapping[str, Any] | None:
    """Return the copy of the base's config that the export holds; None without one."""
    return read_base_config(export_dir) if has_base_config(export_dir) else None
