"""Checks that refuse a damaged export: all of its files, or those that ``add`` reads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lora_export.core.errors import ExportDirectoryError
from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH
from lora_export.core.safetensors_file import encode_header, read_header
from lora_export.exports.create import BASE_WEIGHTS, weights_metadata
from lora_export.exports.integrity import audit, problem_of
from lora_export.exports.stored_values import parameters_of
from lora_export.ondevice.file_opening import open_file, reason_of
from lora_export.weights.parameter_entries import entries_of
from lora_export.weights.stream import copied_entry, file_order, zero_entry

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lora_export.core.manifest import Manifest

__all__ = ["require_files", "require_intact", "require_usable"]

_COMPANIONS = "hf/"
_HINT = "Copy the directory again, or export again."


def require_intact(export_dir: Path, manifest: Manifest) -> None:
    """Require that every file of the manifest is there with its hash; all of them are read.

    Raises:
        ExportDirectoryError: A file is missing or differs; the first is named.
    """
    problems = audit(export_dir, manifest, hashed=True).problems
    if problems:
        msg = f"the export {str(export_dir)!r} was changed or damaged: {problems[0]}"
        raise ExportDirectoryError(msg, hint=_HINT)


def require_files(
    export_dir: Path, manifest: Manifest, files: Iterable[str], *, hashed: bool
) -> None:
    """Require of some files that they are there and, of a weight file, as long as its header says.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        files: The files, by their names in the manifest.
        hashed: Whether each has to have its SHA-256 as well.

    Raises:
        ExportDirectoryError: A file is missing or differs.
    """
    for file in files:
        path = resolve_inside(export_dir, file)
        if problem := problem_of(path, manifest.files.get(file), hashed=hashed):
            raise _differs(export_dir, file, problem)


def require_usable(export_dir: Path, manifest: Manifest) -> None:
    """Require of what `add` builds on what can be had without reading the weights.

    The base's graph has its hash; the base's weight file opens with the header that follows from
    the manifest, byte for byte, and has the size that belongs to it; configs and tokenizers are
    regular files, as far as they are there. A value that was changed in
    place is found by `require_intact` (``verify``, ``inspect --hash``) only.

    Raises:
        ExportDirectoryError: One of the two is missing or differs.
        InputError: The header of a weight file that a user's graph goes with is damaged.
    """
    graph = manifest.base_graph
    for file, sha256 in {BASE_WEIGHTS: None, **graph.graph_files}.items():
        if problem := problem_of(
            resolve_inside(export_dir, file), sha256, hashed=sha256 is not None
        ):
            raise _differs(export_dir, file, problem)
    for file in (each for each in manifest.files if each.startswith(_COMPANIONS)):
        problem = problem_of(path := resolve_inside(export_dir, file), None, hashed=False)
        if problem and os.path.lexists(path):
            raise _differs(export_dir, file, problem)
    header, size_bytes = _expected(export_dir, manifest)
    path = resolve_inside(export_dir, BASE_WEIGHTS)
    try:
        with open_file(path) as stream:
            found_bytes = os.fstat(stream.fileno()).st_size
            same = stream.read(len(header)) == header
    except OSError as error:
        raise _differs(export_dir, BASE_WEIGHTS, f"cannot be read: {reason_of(error)}") from error
    if not same or found_bytes != size_bytes:
        what = f"its size is {found_bytes}, not {size_bytes}" if same else "another header"
        raise _differs(export_dir, BASE_WEIGHTS, what)


def _differs(export_dir: Path, file: str, problem: str) -> ExportDirectoryError:
    msg = f"the export {str(export_dir)!r} was changed or damaged: {file}: {problem}"
    return ExportDirectoryError(msg, hint=_HINT)


def _expected(export_dir: Path, manifest: Manifest) -> tuple[bytes, int]:
    """Return the first bytes of the base's weight file, and its size; see `write_weights`.

    A graph that the user brought has values beside the parameters: the names, dtypes and shapes of
    those are taken from the file itself.
    """
    missing = set(manifest.base_graph.missing)
    rows = {
        entry.name: entry
        for parameter in parameters_of(manifest)
        if parameter.name not in missing
        for entry in entries_of(parameter, zero_entry, method="")
    }
    if manifest.base.graph is not None:
        held, _ = read_header(resolve_inside(export_dir, BASE_WEIGHTS))
        rows = {name: copied_entry(name, each) for name, each in held.items()} | rows
    ordered = file_order([*rows.values()])
    table = [(each.name, each.dtype, each.shape) for each in ordered]
    header, _ = encode_header(table, weights_metadata(BASE_GRAPH))
    return header, len(header) + sum(each.nbytes for each in ordered)
