"""Layouts written: graphs with their values in one file each, copies, and a record of all files.

What is written lies in a private folder beside the output until it is complete. Values are copied
in blocks, so that memory does not grow with the model. Nothing is linked to the export.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import ExportDirectoryError, StorageError
from lora_export.core.files import (
    copy_file,
    open_output,
    resolve_inside,
    sha256_of_file,
    storage_errors,
    sync_folder,
    write_synced,
)
from lora_export.core.layout_record import LAYOUT_RECORD, LayoutFile, LayoutRecord, layout_bytes
from lora_export.core.manifest import MANIFEST_NAME
from lora_export.core.progress import Progress, Silent
from lora_export.core.tensors import FileHandle
from lora_export.core.version import VERSION
from lora_export.exports.integrity import problem_of
from lora_export.exports.integrity_checks import require_files
from lora_export.graph.gathered_values import GatheredGraph, gather_values
from lora_export.layouts.side_by_side import side_by_side_blocks
from lora_export.layouts.target_folder import fresh_folder, require_place
from lora_export.ondevice.file_opening import real_path, reason_of, require_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.layouts.description import Layout, Subject
    from lora_export.weights.companion_files import Content

__all__ = ["WrittenLayout", "write_layouts"]

_COMPANIONS: Final = "hf/"
"""Files that a user may edit: they are copied as they are."""


@dataclass(frozen=True)
class WrittenLayout:
    """A directory that was written for a runtime.

    Attributes:
        folder: Where it is.
        adapters: The adapters in it; none for the base.
        files: Its files, the record left out.
        size_bytes: What they take together.
        notes: What the user should know.
    """

    folder: Path
    adapters: tuple[str, ...]
    files: tuple[str, ...]
    size_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """One directory, its graphs rewritten for their new files."""

    layout: Layout
    graphs: Mapping[str, GatheredGraph] = field(repr=False)

    @property
    def size_bytes(self) -> int:
        graphs = sum(len(each.onnx_bytes) + each.data_bytes for each in self.graphs.values())
        return graphs + sum(map(_size_of, self.layout.files.values()))


def write_layouts(
    subjects: Mapping[str, Subject],
    describe: Callable[[Subject], Layout],
    output: Path,
    *,
    runtime: str,
    replace: bool = False,
    progress: Progress | None = None,
) -> list[WrittenLayout]:
    """Write a directory for each subject, all of them or none.

    Args:
        subjects: What is written, by its folder below `output`; ``""`` is `output` itself. All are
            of one export.
        describe: Returns the directory of a subject.
        output: Where it goes.
        runtime: The runtime's name, for the records.
        replace: Whether layouts that are there are replaced.
        progress: Told what happens, and before anything is written how many bytes it takes.

    Raises:
        LoraExportError: See `describe` and `require_place`.
        ExportDirectoryError: A file of the export is missing or differs from the manifest.
        StorageError: The disk has too little room, or refuses; nothing is left behind.
    """
    tell = progress or Silent()
    first = next(iter(subjects.values()))
    export_dir, manifest = first.export_dir, first.manifest
    require_place(output, export_dir, replace=replace)
    used, edited, total = set[str](), set[str](), 0
    for subject in subjects.values():
        plan = _planned(describe(subject))
        total += plan.size_bytes
        used |= set(_read_of(export_dir, manifest, plan))
        for note in plan.layout.notes:
            tell.note(f"note: {note}")
        edited |= set(_edited(export_dir, manifest, plan))
    for file in sorted(edited):
        tell.note(
            f"note: {file} was edited after the export was written; the edited file is copied"
        )
    tell.note(f"{total:,} bytes on disk for {runtime}")
    tell.start("checking the export")
    require_files(export_dir, manifest, sorted(used), hashed=True)
    written = []
    with fresh_folder(output, replace=replace) as fresh:
        _require_room(fresh, total, output)
        for where, subject in subjects.items():
            plan = _planned(describe(subject))
            tell.start(f"writing {output / where}", plan.size_bytes)
            files = _write(fresh / where, export_dir, plan, tell)
            record = LayoutRecord(
                tool=f"lora-export {VERSION}",
                runtime=runtime,
                export=real_path(export_dir).name,
                manifest=sha256_of_file(export_dir / MANIFEST_NAME),
                base=manifest.base.fingerprint,
                adapters=list(plan.layout.adapters),
                files=dict(sorted(files.items())),
            )
            write_synced(fresh / where / LAYOUT_RECORD, layout_bytes(record))
            written.append(
                WrittenLayout(
                    output / where,
                    plan.layout.adapters,
                    tuple(record.files),
                    sum(each.bytes for each in record.files.values()),
                    plan.layout.notes,
                )
            )
    return written


def _planned(layout: Layout) -> _Plan:
    return _Plan(
        layout,
        {
            each.path: gather_values(each.onnx_bytes, each.data, each.packed)
            for each in layout.graphs
        },
    )


def _read_of(export_dir: Path, manifest: Manifest, plan: _Plan) -> Iterator[str]:
    """Yield the files of the export that a directory takes, those that have to be as recorded."""
    for graph in plan.graphs.values():
        yield from (each.location for piece in graph.pieces for each in piece.content.sources)
    for content in plan.layout.files.values():
        if isinstance(content, bytes):
            continue
        name = content.relative_to(export_dir).as_posix()
        if name in manifest.files and not name.startswith(_COMPANIONS):
            yield name


def _edited(export_dir: Path, manifest: Manifest, plan: _Plan) -> Iterator[str]:
    """Yield the companions that differ from what the manifest records."""
    for content in plan.layout.files.values():
        if isinstance(content, bytes):
            continue
        name = content.relative_to(export_dir).as_posix()
        digest = manifest.files.get(name) if name.startswith(_COMPANIONS) else None
        if digest is not None and problem_of(content, digest, hashed=True):
            yield name


def _size_of(content: Content) -> int:
    if isinstance(content, bytes):
        return len(content)
    try:
        return require_file(content).st_size
    except OSError as error:
        msg = f"cannot read {str(content)!r}: {reason_of(error)}"
        raise ExportDirectoryError(
            msg, hint="Copy the directory again, or export again."
        ) from error


def _require_room(folder: Path, needed_bytes: int, output: Path) -> None:
    with storage_errors(str(output)):
        free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        msg = f"{str(output)!r} takes {needed_bytes:,} bytes, {free:,} are free"
        raise StorageError(msg, hint="Free some space, or choose another -o.")


def _write(folder: Path, export_dir: Path, plan: _Plan, tell: Progress) -> dict[str, LayoutFile]:
    """Write one directory into a private folder; return its files."""
    files: dict[str, LayoutFile] = {}
    placed = {each.path: each for each in plan.layout.graphs}
    for path, graph in plan.graphs.items():
        target = _parent_made(folder, path)
        files[path] = LayoutFile(
            bytes=len(graph.onnx_bytes), sha256=write_synced(target, graph.onnx_bytes)
        )
        if graph.data_bytes:
            data = target.with_name(placed[path].data)
            files[data.relative_to(folder).as_posix()] = LayoutFile(
                bytes=graph.data_bytes, sha256=_write_values(data, export_dir, graph, tell)
            )
    for path, content in plan.layout.files.items():
        target = _parent_made(folder, path)
        if isinstance(content, bytes):
            digest = write_synced(target, content)
        else:
            copy_file(content, target, synced=True)
            digest = sha256_of_file(target)
        files[path] = LayoutFile(bytes=target.stat().st_size, sha256=digest)
    with storage_errors(str(folder)):
        for inner in sorted({(folder / path).parent for path in files}):
            sync_folder(inner)
    return files


def _parent_made(folder: Path, path: str) -> Path:
    target = folder / path
    with storage_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _write_values(path: Path, export_dir: Path, graph: GatheredGraph, tell: Progress) -> str:
    """Write the file with a graph's values, block by block; return its SHA-256."""
    digest = hashlib.sha256()
    handles: dict[str, FileHandle] = {}
    with storage_errors(str(path)), open_output(path) as stream:
        position = 0
        for piece in graph.pieces:
            for each in piece.content.sources:
                if each.location not in handles:
                    handles[each.location] = FileHandle(resolve_inside(export_dir, each.location))
            gap = bytes(piece.start_bytes - position)
            stream.write(gap)
            digest.update(gap)
            for block in side_by_side_blocks(handles, piece.content):
                stream.write(block)
                digest.update(block)
                tell.advance(len(block))
            position = piece.start_bytes + piece.length_bytes
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()
