"""Warm-up requests, made from the golden inputs of an export.

A model that takes an adapter's name is warmed up without one: an adapter may be removed later, and
a model whose warm-up fails does not load. Where every adapter has a session of its own there is no
warm-up: the base's session would be opened for nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.stored_adapters import find_stored
from lora_export.ondevice.judge.golden_files import read_golden

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import Manifest

__all__ = ["Request", "golden_of", "warmup_requests"]


@dataclass(frozen=True)
class Request:
    """A request of one row.

    Attributes:
        name: What it is called.
        inputs: The bytes of each input.
        shapes: Its sizes, without the batch.
    """

    name: str
    inputs: Mapping[str, bytes]
    shapes: Mapping[str, tuple[int, ...]]


def warmup_requests(export_dir: Path, manifest: Manifest, graph: str) -> list[Request]:
    """Return the requests that an instance runs before it is ready; none without golden inputs.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        graph: The graph, or ``base`` for a graph that adapters share.

    Raises:
        ExportDirectoryError: A golden file is damaged.
    """
    file = golden_of(manifest, graph)
    if file is None or (graph == BASE_GRAPH and manifest.base_graph.missing):
        return []
    case = read_golden(resolve_inside(export_dir, file)).cases[0]
    rows = {each: np.ascontiguousarray(values[:1]) for each, values in case.feeds.items()}
    return [
        Request(
            f"golden-{graph}",
            {each: row.tobytes() for each, row in rows.items()},
            {each: row.shape[1:] for each, row in rows.items()},
        )
    ]


def golden_of(manifest: Manifest, name: str) -> str | None:
    """Return the golden file of an adapter, or of the base; None where it has none."""
    stored = find_stored(manifest, name)
    return stored.record.golden if stored is not None else None
