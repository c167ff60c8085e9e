"""The graph cache: an architecture that was exported before is not traced again.

``$LORA_EXPORT_CACHE`` (default ``$XDG_CACHE_HOME/lora-export`` or ``~/.cache/lora-export``) holds
``graphs/<key>/``: ``graph.onnx`` (of an encoder-decoder the decoder, ``encoder.onnx`` beside it),
and ``graph.json`` with the parameters and the graphs' hashes. The key covers everything that the
graph depends on: config, task, dtype, opset, the chosen interface, the versions of the libraries
that trace and fold, and the source of this package.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import LoraExportError
from lora_export.core.files import sha256_of_file, staging_folder, write_synced
from lora_export.graph.spec.template import GraphTemplate
from lora_export.ondevice.external_data import GRAPH_LIMIT_BYTES
from lora_export.ondevice.file_opening import TABLE_LIMIT_BYTES, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["cache_root", "key_of", "load", "store"]

_LIBRARIES: Final = ("torch", "transformers", "onnxscript", "onnx-ir", "onnx", "accelerate")
_GRAPH: Final = "graph.onnx"
_ENCODER: Final = "encoder.onnx"
_TABLE: Final = "graph.json"


def cache_root() -> Path:
    """Return the folder of the cache; it may not exist yet."""
    if own := os.environ.get("LORA_EXPORT_CACHE"):
        return Path(own)
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "lora-export"


def key_of(
    settings: Mapping[str, Any], *, task: str, dtype: str, opset: int, choices: Mapping[str, Any]
) -> str:
    """Return the key of a graph: a hash over all that it depends on."""
    content = {
        "config": settings,
        "task": task,
        "dtype": dtype,
        "opset": opset,
        "choices": choices,
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "source": _own_source_sha256(),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load(key: str) -> GraphTemplate | None:
    """Return the cached graph, or None where there is none or it is damaged."""
    folder = cache_root() / "graphs" / key
    try:
        data = read_file(folder / _GRAPH, GRAPH_LIMIT_BYTES)
        table = json.loads(read_file(folder / _TABLE, TABLE_LIMIT_BYTES))
        if table["sha256"] != hashlib.sha256(data).hexdigest():
            return None
        encoder = None
        if "encoder_sha256" in table:
            encoder = read_file(folder / _ENCODER, GRAPH_LIMIT_BYTES)
            if table["encoder_sha256"] != hashlib.sha256(encoder).hexdigest():
                return None
        return GraphTemplate.from_description(data, table, encoder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def store(key: str, template: GraphTemplate) -> None:
    """Keep `template` under `key`; a cache that cannot be written is not an error."""
    with contextlib.suppress(OSError, LoraExportError):
        parent = cache_root() / "graphs"
        with staging_folder(parent, "graph") as folder:
            table = template.describe()
            table["sha256"] = write_synced(folder / _GRAPH, template.onnx_bytes)
            if template.encoder_bytes is not None:
                table["encoder_sha256"] = write_synced(folder / _ENCODER, template.encoder_bytes)
            write_synced(folder / _TABLE, json.dumps(table, indent=1).encode())
            target = parent / key
            with staging_folder(parent, "old") as old:  # a link is moved away, not followed
                if os.path.lexists(target):  # damaged, or another process was faster
                    target.rename(old / key)
                folder.rename(target)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _own_source_sha256() -> str:
    """Return a hash of the modules that shape a graph: a change to one of them is a new key."""
    digest = hashlib.sha256()
    for path in own_sources():
        digest.update(bytes.fromhex(sha256_of_file(path)))
    return digest.hexdigest()


def own_sources() -> list[Path]:
    """Return the modules that shape a graph, those of packages in packages included."""
    here = Path(__file__).parent
    return sorted(path for each in (here, here.parent / "core") for path in each.rglob("*.py"))
