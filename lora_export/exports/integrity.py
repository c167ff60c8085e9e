"""The files of an export directory compared with its manifest."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import LoraExportError
from lora_export.core.files import resolve_inside, sha256_of_file
from lora_export.core.manifest import MANIFEST_NAME
from lora_export.core.progress import Progress, Silent
from lora_export.core.safetensors_file import read_header
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.file_opening import reason_of, require_file
from lora_export.ondevice.trt.runtime_cache import is_cache_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import Manifest

__all__ = ["Audit", "audit", "problem_of"]

_PRIVATE_PREFIX: Final = ".lora"
"""Locks and staging folders, which no manifest names."""


@dataclass(frozen=True)
class Audit:
    """The result of comparing an export's files with its manifest.

    Attributes:
        sizes_bytes: The size of each file of the manifest that is there.
        hashed: Whether contents were compared, or only presence and the length of weight files.
        problems: One line per file that is missing, damaged or different, in the manifest's order.
        unlisted: Files that the manifest does not name.
    """

    sizes_bytes: Mapping[str, int]
    hashed: bool
    problems: tuple[str, ...]
    unlisted: tuple[str, ...]


def audit(
    export_dir: Path, manifest: Manifest, *, hashed: bool = False, progress: Progress | None = None
) -> Audit:
    """Compare the files below `export_dir` with the manifest.

    Without `hashed`: each file is there, and each weight file is as long as its header says. With
    it: each file has the SHA-256 that the manifest records. In both cases, no graph reads a file
    that is missing or outside its folder.

    Raises:
        ExportDirectoryError: A path of the manifest leads outside `export_dir`.
    """
    tell = progress or Silent()
    needed = dict(manifest.files)
    for graph in manifest.graphs.values():
        needed |= graph.graph_files
        for file in (*graph.weights, *([graph.golden] if graph.golden else [])):
            needed.setdefault(file, "")  # a graph reads it: it has to be there, hashed or not
    sizes: dict[str, int] = {}
    problems: list[str] = []
    for file, digest in needed.items():
        path = resolve_inside(export_dir, file)
        with contextlib.suppress(OSError):  # what is wrong with it is in `problems`
            sizes[file] = require_file(path).st_size
            if hashed:
                tell.start(f"hashing {file}", sizes[file])
        if problem := problem_of(path, digest, hashed=hashed):
            problems.append(f"{file}: {problem}")
        tell.advance(sizes.get(file, 0))
    return Audit(sizes, hashed, tuple(problems), _unlisted(export_dir, needed))


def problem_of(path: Path, digest: str | None, *, hashed: bool) -> str | None:
    """Return the problem of a file, or None.

    Args:
        path: The file.
        digest: The SHA-256 that the manifest records, if it records one.
        hashed: Whether the contents are compared, or only presence and the length of weight files.
    """
    try:
        require_file(path)
        if path.suffix == ".onnx":
            read_graph(path)
        if not hashed:
            if path.suffix == ".safetensors":
                read_header(path)
            return None
        if not digest:
            return "the manifest records no SHA-256 for it"
        found = sha256_of_file(path)
    except FileNotFoundError:
        return "missing"
    except LoraExportError as error:
        return error.message
    except OSError as error:
        return f"cannot be read: {reason_of(error)}"
    return None if found == digest else f"SHA-256 is {found[:16]}…, not {digest[:16]}…"


def _unlisted(export_dir: Path, needed: Mapping[str, str]) -> tuple[str, ...]:
    """Return the files that do not belong to an export; kernels belong to the machine."""
    found: list[str] = []
    own = {*needed, MANIFEST_NAME}
    for path in sorted(export_dir.rglob("*")):
        relative = path.relative_to(export_dir)
        if relative.parts[0].startswith(_PRIVATE_PREFIX) or path.is_dir():
            continue
        if relative.as_posix() not in own and not is_cache_file(relative.as_posix()):
            found.append(relative.as_posix())
    return tuple(found)
