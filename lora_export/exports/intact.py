"""Whether an export still holds what its manifest promises: all of it, or what `add` reads."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lora_export.base.dtypes import by_name
from lora_export.base.errors import ExportDirectoryError
from lora_export.base.files import resolve_inside, sha256_of_file, storage_errors
from lora_export.base.safetensors_file import encode_header
from lora_export.exports.audit import audit
from lora_export.exports.create import BASE_WEIGHTS, weights_metadata

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.base.manifest import Manifest

__all__ = ["require_intact", "require_usable"]

_HINT = "Copy the directory again, or export again."


def require_intact(root: Path, manifest: Manifest) -> None:
    """Require that every file of the manifest is there with its hash; all of them are read.

    Raises:
        ExportDirectoryError: A file is missing or differs; the first is named.
    """
    problems = audit(root, manifest, hashed=True).problems
    if problems:
        msg = f"the export {str(root)!r} is not what was written: {problems[0]}"
        raise ExportDirectoryError(msg, hint=_HINT)


def require_usable(root: Path, manifest: Manifest) -> None:
    """Require of what `add` builds on what can be had without reading the weights.

    The base's graph has its hash; the base's weight file opens with the header that follows from
    the manifest, byte for byte, and has the size that belongs to it. A value that was changed in
    place is found by `require_intact` (``verify``, ``inspect --hash``) only.

    Raises:
        ExportDirectoryError: One of the two is missing or differs.
    """
    graph = manifest.graphs["base"]
    for file in (graph.onnx, BASE_WEIGHTS):
        if not resolve_inside(root, file).is_file():
            msg = f"the export {str(root)!r} is not what was written: {file}: missing"
            raise ExportDirectoryError(msg, hint=_HINT)
    if sha256_of_file(resolve_inside(root, graph.onnx)) != graph.sha256:
        msg = f"the export {str(root)!r} is not what was written: {graph.onnx}: another SHA-256"
        raise ExportDirectoryError(msg, hint=_HINT)
    header, size_bytes = _expected(manifest)
    path = resolve_inside(root, BASE_WEIGHTS)
    with storage_errors(str(path)), path.open("rb") as stream:
        same = stream.read(len(header)) == header
    if not same or path.stat().st_size != size_bytes:
        what = f"its size is {path.stat().st_size}, not {size_bytes}" if same else "another header"
        msg = f"the export {str(root)!r} is not what was written: {BASE_WEIGHTS}: {what}"
        raise ExportDirectoryError(msg, hint=_HINT)


def _expected(manifest: Manifest) -> tuple[bytes, int]:
    """Return the first bytes of the base's weight file, and its size; see `write_weights`."""
    missing = set(manifest.graphs["base"].missing)
    rows = [
        (use.initializer, by_name(use.dtype), tuple(use.shape))
        for uses in manifest.parameters.values()
        for use in uses
        if use.graph == "base" and use.initializer not in missing
    ]
    rows.sort(key=lambda row: (-row[1].itemsize_bytes, row[0]))
    header, _ = encode_header(rows, weights_metadata("base"))
    return header, len(header) + sum(prod(shape) * d.itemsize_bytes for _, d, shape in rows)
