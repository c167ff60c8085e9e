"""The part of an export that a bundle takes: the chosen adapters and the files that they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.exports.adapter_companions import folder_of
from lora_export.exports.stored_adapters import stored_adapter

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lora_export.core.manifest import GraphRecord, Manifest

__all__ = ["select"]

_LEFT_OUT: Final = ("engines/", "reports/")
"""Engines are built on the device; reports are of the machine that they were made on."""


def select(manifest: Manifest, names: Sequence[str]) -> Manifest:
    """Return the manifest of an export with some adapters only; with all where no names are given.

    Args:
        manifest: The whole export's.
        names: Adapters; of a batched graph all or none, because their rows lie in one file.

    Raises:
        UsageError: The export holds no such adapter.
        UnsupportedError: Some rows of a batched graph are asked for.
    """
    unknown = next((name for name in names if name not in manifest.adapters), None)
    if unknown is not None:
        msg = f"the export has no adapter {unknown!r}"
        raise UsageError(msg, hint=f"It has: {', '.join(manifest.adapters) or 'none'}.")
    if names and manifest.rows and set(names) != set(manifest.adapters):
        msg = "the adapters of a batched graph are in one file and cannot be bundled apart"
        raise UnsupportedError(msg, hint="Leave --adapter out.")
    kept = set(names or manifest.adapters)
    gone = set(manifest.adapters) - kept
    graphs = {name: record for name, record in manifest.graphs.items() if name not in gone}
    adapters = {name: each for name, each in manifest.adapters.items() if name in kept}
    files = _files(manifest, graphs.values(), kept)
    others = _files(
        manifest, [manifest.graphs[name] for name in gone if name in manifest.graphs], gone
    )
    return manifest.model_copy(
        update={
            "graphs": graphs,
            "adapters": adapters,
            "parameters": {
                name: [use for use in uses if use.graph in graphs]
                for name, uses in manifest.parameters.items()
            },
            "files": {
                file: digest
                for file, digest in manifest.files.items()
                if not file.startswith(_LEFT_OUT) and (file in files or file not in others)
            },
        }
    )


def _files(
    manifest: Manifest, graphs: Collection[GraphRecord], adapters: Collection[str]
) -> set[str]:
    """Return the files of graphs and adapters."""
    found: set[str | None] = set()
    for name in adapters:
        stored, companions = stored_adapter(manifest, name), manifest.adapters[name].companions
        found |= {*stored.files, stored.record.golden}
        if companions is not None:
            found |= {f"{folder_of(name)}/{file}" for file in companions.files}
    for record in graphs:
        found |= {*record.graph_files, *record.weights, record.golden}
    return {file for file in found if file is not None}
