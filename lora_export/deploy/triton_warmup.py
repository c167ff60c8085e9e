"""Warm-up requests, from the golden inputs of an export."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.base.files import resolve_inside
from lora_export.deploy.triton_config import ADAPTER
from lora_export.verify.golden import read_golden

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.base.manifest import Manifest

__all__ = ["Request", "golden_of", "warmup_requests"]

_ADAPTERS: Final = 1
"""How many adapters are warmed up beside the base; each would load into the cache."""


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


def warmup_requests(
    root: Path, manifest: Manifest, graph: str | None, adapters: Sequence[str] = ()
) -> list[Request]:
    """Return the requests that an instance runs before it is ready; none without golden inputs.

    Args:
        root: The export directory.
        manifest: Its manifest.
        graph: The graph; None for a model that takes the adapter's name.
        adapters: The adapters of such a model.

    Raises:
        ExportDirectoryError: A golden file is damaged.
    """
    if graph is not None:
        file = golden_of(manifest, graph)
        own = [] if file is None else [(graph, "", file)]
    else:
        base = () if manifest.graphs["base"].missing else (("base", ""),)
        named = [*base, *((each, each) for each in adapters[:_ADAPTERS])]
        own = [(n, text, file) for n, text in named if (file := golden_of(manifest, n)) is not None]
    return [_request(root, name, text, file) for name, text, file in own]


def golden_of(manifest: Manifest, name: str) -> str | None:
    """Return the golden file of a graph or an adapter; None where it has none."""
    record = manifest.adapters.get(name)
    held = record and (record.pack or record.row)
    if held:
        return held.golden
    if name in manifest.graphs:
        return manifest.graphs[name].golden
    return None


def _request(root: Path, name: str, adapter: str, file: str) -> Request:
    case = read_golden(resolve_inside(root, file)).cases[0]
    rows = {each: np.ascontiguousarray(values[:1]) for each, values in case.feeds.items()}
    text = adapter.encode()
    return Request(
        f"golden-{name}",
        {**{each: row.tobytes() for each, row in rows.items()},
         ADAPTER: struct.pack("<I", len(text)) + text},
        {**{each: row.shape[1:] for each, row in rows.items()}, ADAPTER: (1,)},
    )  # fmt: skip
