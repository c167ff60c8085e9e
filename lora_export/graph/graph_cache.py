"""The graph cache: an architecture that was exported before is not traced again.

``$LORA_EXPORT_CACHE`` (default ``$XDG_CACHE_HOME/lora-export`` or ``~/.cache/lora-export``) holds
``graphs/<key>/<libraries>/``: ``graph.onnx`` (of an encoder-decoder the decoder, ``encoder.onnx``
beside it), and ``graph.json`` with the parameters, the graphs' hashes, the versions of the
libraries that traced and folded it, and what was asked for.

The key covers what the graph depends on beside those libraries: config, task, dtype, opset, the
chosen interface and the source of this package. Where the libraries are installed, a graph is
taken of their versions alone. Where they are not, nothing can be traced anew: the graph of the
newest versions is taken. A cache can therefore be filled on one machine and copied to another.
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
from lora_export.graph.cached_requests import Request, difference, version_numbers
from lora_export.graph.spec.template import GraphTemplate
from lora_export.ondevice.external_data import GRAPH_LIMIT_BYTES
from lora_export.ondevice.file_opening import TABLE_LIMIT_BYTES, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["cache_root", "key_of", "load", "missed", "store"]

_LIBRARIES: Final = ("transformers", "torch", "onnxscript", "onnx-ir", "onnx", "accelerate")
"""Those that trace and fold; entries are ordered by their versions, the first one's first."""

_GRAPH: Final = "graph.onnx"
_ENCODER: Final = "encoder.onnx"
_TABLE: Final = "graph.json"


def cache_root() -> Path:
    """Return the folder of the cache; it may not exist yet."""
    if own := os.environ.get("LORA_EXPORT_CACHE"):
        return Path(own)
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "lora-export"


def key_of(request: Request) -> str:
    """Return the key of a graph: a hash over all that it depends on beside the libraries."""
    return _key(request.describe(), _own_source_sha256())


def load(request: Request, *, traceable: bool) -> GraphTemplate | None:
    """Return the cached graph, or None where there is none or it is damaged.

    Args:
        request: The graph that is asked for.
        traceable: Whether the libraries that trace are installed: a graph of other versions is
            then none.
    """
    folder = cache_root() / "graphs" / key_of(request)
    if traceable:
        return _read_entry(folder / _hash_of(_versions()))
    found = (_read_entry(entry) for entry in _newest_first(folder))
    return next((template for template in found if template is not None), None)


def missed(request: Request) -> str:
    """Return how the nearest cached graph differs from the one that is asked for."""
    tables = (
        _read_table(path.parent) for path in sorted(cache_root().glob(f"graphs/*/*/{_TABLE}"))
    )
    cached = [(table["request"], table["source"]) for table in tables if table]
    if difference(request, [asked for asked, _ in cached]) == "":
        return "the graph was made by another version of lora-export"
    own = [asked for asked, source in cached if source == _own_source_sha256()]
    return difference(request, own) or f"no graph of {request.model_type}"


def store(request: Request, template: GraphTemplate) -> None:
    """Keep `template` for `request`; a cache that cannot be written is not an error."""
    with contextlib.suppress(OSError, LoraExportError):
        parent = cache_root() / "graphs"
        versions = _versions()
        with staging_folder(parent, "graph") as folder:
            table = template.describe()
            table["libraries"] = versions
            table["request"] = request.describe()
            table["source"] = _own_source_sha256()
            table["sha256"] = write_synced(folder / _GRAPH, template.onnx_bytes)
            if template.encoder_bytes is not None:
                table["encoder_sha256"] = write_synced(folder / _ENCODER, template.encoder_bytes)
            write_synced(folder / _TABLE, json.dumps(table, indent=1).encode())
            target = parent / key_of(request) / _hash_of(versions)
            with staging_folder(parent, "old") as old:  # a link is moved away, not followed
                if target.parent.is_symlink():
                    target.parent.rename(old / "link")
                target.parent.mkdir(exist_ok=True)
                if os.path.lexists(target):  # damaged, or another process was faster
                    target.rename(old / target.name)
                folder.rename(target)


def _read_entry(folder: Path) -> GraphTemplate | None:
    table = _read_table(folder)
    try:
        data = read_file(folder / _GRAPH, GRAPH_LIMIT_BYTES)
        if table is None or table["sha256"] != hashlib.sha256(data).hexdigest():
            return None
        encoder = None
        if "encoder_sha256" in table:
            encoder = read_file(folder / _ENCODER, GRAPH_LIMIT_BYTES)
            if table["encoder_sha256"] != hashlib.sha256(encoder).hexdigest():
                return None
        return GraphTemplate.from_description(data, table, encoder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _read_table(folder: Path) -> dict[str, Any] | None:
    """Return the table of an entry, or None where it is damaged or another entry's."""
    try:
        table = json.loads(read_file(folder / _TABLE, TABLE_LIMIT_BYTES))
        names = _key(table["request"], table["source"]), _hash_of(table["libraries"])
        whole = names == (folder.parent.name, folder.name)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return table if whole else None


def _newest_first(folder: Path) -> list[Path]:
    """Return the entries of a key, those of the newest libraries first."""
    try:
        tables = {each: _read_table(each) for each in sorted(folder.iterdir())}
    except OSError:
        return []
    order = {
        each: [version_numbers(table["libraries"].get(name)) for name in _LIBRARIES]
        for each, table in tables.items()
        if table is not None and isinstance(table["libraries"], dict)
    }
    return sorted(order, key=order.__getitem__, reverse=True)


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in _LIBRARIES}


def _key(request: Mapping[str, Any], source: str) -> str:
    return _hash_of({**request, "source": source})


def _hash_of(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


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
