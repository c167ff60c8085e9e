"""Batched exports: one graph with the stacks of all adapters, and one row per adapter.

    batched.onnx                        the graph; reads ``adapter_ids``
    weights/batched-<hash>.safetensors  the stacks, one row for each adapter; row 0 is the base

An adapter keeps its row as long as it is there, and the row of one that was removed is the base
until another takes it. A change writes a stack file of another name and a small graph: the stacks
that stay are copied row by row, and the base's weights are not touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.adapter_names import is_adapter_name
from lora_export.core.changes import change_export
from lora_export.core.errors import AdapterError, ExportDirectoryError
from lora_export.core.files import (
    resolve_inside,
    staging_folder,
    storage_errors,
    write_synced,
)
from lora_export.core.manifest import GraphRecord, Manifest, RowRecord, edit_manifest
from lora_export.core.modes import BATCHED_GRAPH, Mode
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import read_all
from lora_export.exports.adapter_companions import stage_companions
from lora_export.exports.create import weights_metadata
from lora_export.exports.integrity import problem_of
from lora_export.exports.merged_adapters import (
    adapter_record,
    forget_adapter,
    orphaned_files,
    refuse_taken,
)
from lora_export.exports.stack_table import StackTable
from lora_export.exports.values import origin_of, refuse_unswappable
from lora_export.graph.adapters.batched_graph import LABELS_STACK, with_stacks
from lora_export.graph.spec.template import Placement
from lora_export.ondevice.external_data import read_graph
from lora_export.weights.stream import write_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.core.manifest import AdapterRecord
    from lora_export.core.tensors import Tensor
    from lora_export.exports.new_adapter import NewAdapter

    Array = npt.NDArray[Any]

__all__ = [
    "change_rows",
    "width_of",
]

_GRAPH_FILE: Final = "batched.onnx"
_STACK_FILES: Final = "batched-*.safetensors"


def width_of(export_dir: Path, manifest: Manifest, row: int) -> int | None:
    """Return how many logits a row has; None where all rows have the graph's."""
    file = _stack_file(manifest)
    labels = read_header(resolve_inside(export_dir, file))[0].get(LABELS_STACK) if file else None
    return None if labels is None else int(read_all(labels)[row].sum())


def _stack_file(manifest: Manifest) -> str | None:
    """Return the weight file of the batched graph alone; None without adapters."""
    record = manifest.graphs.get(BATCHED_GRAPH)
    own = set(record.weights) - set(manifest.base_graph.weights) if record else ()
    return next(iter(own), None)


def change_rows(
    export_dir: Path,
    new: Sequence[NewAdapter] = (),
    *,
    gone: str | None = None,
    replace: bool = False,
) -> Manifest:
    """Add adapters to the stacks of an export, or take one out; the first call makes the graph.

    Args:
        export_dir: The export directory.
        new: The adapters to add, all or none.
        gone: The adapter to take out.
        replace: Whether adapters of the same names may be replaced; they keep their rows.

    Raises:
        AdapterError: A name is taken or unknown, or a tensor of an adapter is damaged.
        UnsupportedError: An adapter changes something that cannot differ between rows.
        StorageError: The disk refuses; the export is as it was.
    """
    for each in new:
        for update in each.resolved.updates:
            refuse_unswappable(update)
    with edit_manifest(export_dir) as manifest:
        if gone is not None and gone not in manifest.adapters:
            left = _orphans(export_dir, manifest, {gone}) if is_adapter_name(gone) else set()
            with storage_errors(str(export_dir)):
                for file in left:
                    resolve_inside(export_dir, file).unlink(missing_ok=True)
            if left:
                return manifest  # a removal that was cut short is finished
            msg = f"the export {str(export_dir)!r} has no adapter {gone!r}"
            held = ", ".join(sorted(manifest.adapters)) or "none"
            raise AdapterError(msg, hint=f"It has: {held}.")
        rows = manifest.rows
        kept = manifest
        if gone is not None:
            del rows[gone]
            kept = forget_adapter(kept, gone)
        for each in new:
            refuse_taken(kept, each.name, replace=replace)
            kept = forget_adapter(kept, each.name)
            free = next(row for row in range(1, len(rows) + 2) if row not in rows.values())
            rows.setdefault(each.name, free)
        table = StackTable(export_dir, manifest, rows, new, _old_stacks(export_dir, manifest))
        return _write(export_dir, manifest, kept, rows=rows, new=new, table=table)


def _orphans(export_dir: Path, manifest: Manifest, names: Iterable[str]) -> set[str]:
    """Return the stacks, and files of adapters, that the manifest does not name."""
    stacks = {f"weights/{each.name}" for each in (export_dir / "weights").glob(_STACK_FILES)}
    return (stacks - set(manifest.files)).union(
        *(orphaned_files(export_dir, manifest, each) for each in names)
    )


def _write(
    export_dir: Path,
    before: Manifest,
    kept: Manifest,
    *,
    rows: Mapping[str, int],
    new: Sequence[NewAdapter],
    table: StackTable,
) -> Manifest:
    """Write stacks, graph and manifest in place of those of `before`; return the manifest."""
    base = kept.base_graph
    stale = _stack_file(kept)
    with staging_folder(export_dir, "add") as staging:
        with storage_errors(str(staging)):
            (staging / "weights").mkdir()
        entries = table.entries()
        files: dict[str, str] = {}
        stacks: list[str] = []
        placements: dict[str, Placement] = {}
        if entries:
            metadata = weights_metadata(BATCHED_GRAPH)
            metadata["base_fingerprint"] = kept.base.fingerprint
            written = write_weights(staging / "stacks", entries, metadata=metadata)
            stack_file = f"weights/batched-{written.sha256[:12]}.safetensors"
            with storage_errors(stack_file):
                (staging / "stacks").rename(staging / stack_file)
            files[stack_file] = written.sha256
            stacks.append(stack_file)
            placements = {
                each.name: Placement(stack_file, *written.offsets[each.name]) for each in entries
            }
        for each in new:
            files |= stage_companions(staging, each.name, each.companions.contents)
        graph = with_stacks(
            read_graph(resolve_inside(export_dir, base.onnx)), table.graph_values(placements)
        )
        digest = write_synced(staging / _GRAPH_FILE, graph)
        record = GraphRecord(
            mode=Mode.BATCHED,
            onnx=_GRAPH_FILE,
            weights=[*base.weights, *stacks],
            opset=base.opset,
            sha256=digest,
            missing=base.missing,
            form=base.form,
        )
        updated = kept.model_copy(
            update={
                "adapters": _adapters(kept, rows, new),
                "graphs": {**kept.graphs, BATCHED_GRAPH: record},
                "files": {
                    **{file: sha for file, sha in kept.files.items() if file != stale},
                    **files,
                    _GRAPH_FILE: digest,
                },
            }
        )
        names = {*before.adapters.keys() - updated.adapters.keys(), *(each.name for each in new)}
        change_export(export_dir, staging, before, updated, _orphans(export_dir, updated, names))
    return updated


def _adapters(
    kept: Manifest, rows: Mapping[str, int], new: Sequence[NewAdapter]
) -> dict[str, AdapterRecord]:
    """Return the manifest's records of the adapters; none is verified in the new graph."""
    adapters = {
        name: each.model_copy(
            update={"row": each.row and each.row.model_copy(update={"verification": "unverified"})}
        )
        for name, each in kept.adapters.items()
    }
    for each in new:
        adapters[each.name] = adapter_record(
            kept, each.resolved, source=each.source, origin=origin_of(kept, each.resolved),
            labels=each.labels, combined=each.combined, companions=each.companions,
        ).model_copy(update={"row": RowRecord(row=rows[each.name])})  # fmt: skip
    return adapters


def _old_stacks(export_dir: Path, manifest: Manifest) -> Mapping[str, Tensor]:
    """Return the stacks that there are."""
    file = _stack_file(manifest)
    if file is None:
        return {}
    path = resolve_inside(export_dir, file)
    if problem := problem_of(path, manifest.files.get(file), hashed=True):
        msg = f"the export {str(export_dir)!r} was changed or damaged: {file}: {problem}"
        raise ExportDirectoryError(msg, hint="Copy the directory again, or export again.")
    return read_header(path)[0]
