"""Swappable exports: one graph with optional inputs, and for each adapter a pack of their values.

    swappable.onnx                     the base graph and, beside its weights, A and B as inputs
    adapters/<name>.safetensors        the values, by the names of those inputs
    adapters/<name>.onnx_adapter       the same for ``RunOptions.add_active_adapter``

The scale is folded into B; what an adapter carries whole is stored as the graph stores it. Both
files say which base they are for: the first with its fingerprint, the second with its low 31 bits.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.core.changes import change_export
from lora_export.core.dtypes import cast
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside, staging_folder, storage_errors, write_synced
from lora_export.core.listing import first_few
from lora_export.core.manifest import (
    GraphRecord,
    Manifest,
    PackRecord,
    edit_manifest,
    write_manifest,
)
from lora_export.core.modes import SWAPPABLE_GRAPH, Mode
from lora_export.core.safetensors_write import write_tensors
from lora_export.core.tensors import MemoryTensor
from lora_export.exports.adapter_companions import NO_COMPANIONS, stage_companions
from lora_export.exports.create import weights_metadata
from lora_export.exports.merged_adapters import (
    adapter_record,
    forget_adapter,
    orphaned_files,
    refuse_taken,
)
from lora_export.exports.pack_reading import read_pack
from lora_export.exports.plan import head_parameters
from lora_export.exports.stored_values import parameters_of, stored_values
from lora_export.exports.values import origin_of, refuse_unswappable, values_of
from lora_export.graph.adapters.swappable_graph import (
    Slots,
    input_a,
    input_b,
    input_magnitude,
    optional_inputs,
    with_lora,
)
from lora_export.graph.spec import tasks
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.file_opening import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from lora_export.adapters.resolve import Resolved, Update
    from lora_export.core.combined_record import CombinedRecord
    from lora_export.core.parameters import Parameter
    from lora_export.exports.adapter_companions import AdapterCompanions

    WriteAdapter = Callable[[Path, Mapping[str, MemoryTensor], str], None]

__all__ = [
    "FIXED_SCALE",
    "add_pack",
    "add_swappable_graph",
    "pack_of",
    "read_pack",
    "require_slots",
]

_PACK_LIMIT_BYTES: Final = 1 << 31
"""The largest file of the format: offsets in a FlatBuffer have 32 bits, with a sign."""

_GRAPH_FILE: Final = "swappable.onnx"
FIXED_SCALE: Final = "lora_scale"
"""In a pack's metadata: the one scale that all of its values hold for (a bias with that of a B)."""
_SHOWN: Final = 5


def add_swappable_graph(
    export_dir: Path, resolved: Sequence[Resolved], *, modules: Sequence[str] | None = None
) -> Manifest:
    """Write ``swappable.onnx`` into an export that has no adapters yet.

    Args:
        export_dir: The export directory.
        resolved: The adapters that the graph is for.
        modules: Names of modules that can be adapted, or ends of them, as in PEFT's
            ``target_modules``; those that `resolved` change by default.

    Raises:
        UnsupportedError: Something that adapters change cannot be an input.
        UsageError: A name of `modules` fits no module.
    """
    with edit_manifest(export_dir) as manifest:
        base = manifest.base_graph
        slots = _slots(manifest, resolved, modules)
        graph = with_lora(read_graph(resolve_inside(export_dir, base.onnx)), slots)
        digest = write_synced(resolve_inside(export_dir, _GRAPH_FILE), graph)
        record = GraphRecord(
            mode=Mode.SWAPPABLE,
            onnx=_GRAPH_FILE,
            weights=base.weights,
            opset=base.opset,
            sha256=digest,
            missing=base.missing,
            form=base.form,
        )
        updated = manifest.model_copy(
            update={
                "graphs": {**manifest.graphs, SWAPPABLE_GRAPH: record},
                "files": {**manifest.files, _GRAPH_FILE: digest},
            }
        )
        write_manifest(export_dir, updated)
    return updated


def require_slots(export_dir: Path, manifest: Manifest, resolved: Sequence[Resolved]) -> None:
    """Require that the swappable graph has an input for everything that adapters change.

    Raises:
        UnsupportedError: It has not; up to five parameters are named.
    """
    graph = resolve_inside(export_dir, manifest.graphs[SWAPPABLE_GRAPH].onnx)
    inputs = optional_inputs(read_graph(graph))
    for each in resolved:
        _require_slots(each, inputs)


def add_pack(
    export_dir: Path,
    resolved: Resolved,
    *,
    source: str,
    labels: Sequence[str] | None,
    replace: bool,
    write: WriteAdapter,
    combined: CombinedRecord | None = None,
    companions: AdapterCompanions = NO_COMPANIONS,
) -> Manifest:
    """Add an adapter to a swappable export: its pack, in two formats; no graph is touched.

    The graph has the inputs that the adapter sets; see `require_slots`.

    Args:
        export_dir: The export directory.
        resolved: The adapter, resolved against the export's parameters.
        source: Where the adapter is, as the manifest records it.
        labels: Names of the head's classes.
        replace: Whether an adapter of the same name may be replaced.
        write: Writes an ``.onnx_adapter``: its path, its tensors, the base's fingerprint.
        combined: What the adapter was made of, where it was.
        companions: What comes with it besides its tensors.

    Raises:
        AdapterError: The name is taken, or a tensor of the adapter is damaged.
        StorageError: The disk refuses; the export is as it was.
    """
    name = resolved.adapter.name
    plain, packed = f"adapters/{name}.safetensors", f"adapters/{name}.onnx_adapter"
    with edit_manifest(export_dir) as manifest:
        refuse_taken(manifest, name, replace=replace)
    tensors, metadata = pack_of(export_dir, manifest, resolved)
    fingerprint = manifest.base.fingerprint
    with staging_folder(export_dir, "add") as staging:
        with storage_errors(str(staging)):
            (staging / "adapters").mkdir()
        files = {plain: write_tensors(staging / plain, tensors, metadata)}
        with storage_errors(packed):
            write(staging / packed, tensors, fingerprint)
            files[packed] = write_synced(
                staging / packed, read_file(staging / packed, _PACK_LIMIT_BYTES)
            )
        files |= stage_companions(staging, name, companions.contents)
        record = adapter_record(
            manifest, resolved, source=source, origin=origin_of(manifest, resolved),
            labels=labels, combined=combined, companions=companions,
        ).model_copy(
            update={"pack": PackRecord(safetensors=plain, onnx_adapter=packed, base=fingerprint)}
        )  # fmt: skip
        with edit_manifest(export_dir) as current:
            refuse_taken(current, name, replace=replace)
            others = forget_adapter(current, name)
            updated = others.model_copy(
                update={
                    "adapters": {**others.adapters, name: record},
                    "files": {**others.files, **files},
                }
            )
            change_export(
                export_dir, staging, current, updated, orphaned_files(export_dir, updated, name)
            )
    return updated


def _slots(
    manifest: Manifest, resolved: Sequence[Resolved], modules: Sequence[str] | None
) -> Slots:
    parameters = parameters_of(manifest)
    updates = [update for each in resolved for update in each.updates]
    for update in updates:
        refuse_unswappable(update)
    adapted = {update.parameter.name for update in updates if update.low_rank is not None}
    if modules is not None:
        adapted = _named(parameters, modules)
    values = {u.parameter.name for u in updates if u.saved is not None or u.added is not None}
    heads = head_parameters(tasks.by_name(manifest.base.task))
    return Slots(
        adapted=tuple(each for each in parameters if each.name in adapted),
        magnitudes=frozenset(
            update.parameter.name
            for update in updates
            if update.low_rank is not None and update.low_rank.magnitude is not None
        )
        & adapted,
        values=tuple(each for each in parameters if each.name in values),
        resizable=heads,
    )


def _named(parameters: Iterable[Parameter], modules: Sequence[str]) -> set[str]:
    """Return the weights of the modules that the patterns fit, whole or by their end."""
    found: set[str] = set()
    for pattern in modules:
        fitting = [
            each
            for each in parameters
            for module in [each.name.removesuffix(".weight")]
            if module != each.name
            and (
                fnmatch.fnmatchcase(module, pattern) or fnmatch.fnmatchcase(module, f"*.{pattern}")
            )
        ]
        if not fitting:
            msg = f"--lora-modules {pattern!r} matches no module of the base"
            raise UsageError(msg, hint="See its modules with: lora-export inspect BASE")
        for each in fitting:
            if each.aliases:
                msg = f"{each.name!r} is tied to {each.aliases[0]!r} and cannot be swapped alone"
                raise UnsupportedError(msg, hint="Leave it out of --lora-modules.")
        found.update(each.name for each in fitting)
    return found


def _inputs_for(update: Update) -> list[str]:
    """Return the names of the inputs that an update sets."""
    name = update.parameter.name
    found = [name] if update.saved is not None or update.added is not None else []
    if update.low_rank is not None:
        found += [input_a(name), input_b(name)]
        if update.low_rank.magnitude is not None:
            found.append(input_magnitude(name))
    return found


def _require_slots(resolved: Resolved, inputs: Collection[str]) -> None:
    for update in resolved.updates:
        refuse_unswappable(update)
        _require_width(resolved, update, inputs)
    wanted = [name for update in resolved.updates for name in _inputs_for(update)]
    if lacking := [name for name in wanted if name not in inputs]:
        msg = (
            f"adapter {resolved.adapter.source!r} sets {len(lacking)} input(s) that the swappable "
            f"graph does not have:"
        )
        raise UnsupportedError(
            msg,
            items=first_few(lacking, _SHOWN),
            hint="Export again, into another directory, with all adapters given to "
            "merge-and-build; or add this one to an export of merged graphs.",
        )


def _require_width(resolved: Resolved, update: Update, inputs: Collection[str]) -> None:
    """Require that a head of another width is not one that the graph updates: s·B has one width."""
    name, saved = update.parameter.name, update.saved
    if saved is None or saved.tensor.shape == update.parameter.shape or input_b(name) not in inputs:
        return
    msg = (
        f"adapter {resolved.adapter.source!r} brings {name!r} of shape {list(saved.tensor.shape)}; "
        f"the swappable graph has a low-rank update of it, of shape {list(update.parameter.shape)}"
    )
    raise UnsupportedError(msg, hint="Export it in a graph of its own, or with --mode batched.")


def pack_of(
    export_dir: Path, manifest: Manifest, resolved: Resolved
) -> tuple[dict[str, MemoryTensor], dict[str, str]]:
    """Return an adapter as values of the swappable graph's inputs, and the metadata of their file.

    Raises:
        AdapterError: A tensor of the adapter is damaged.
        InputError: The graph's dtype cannot hold a value.
    """
    stored = stored_values(export_dir, manifest)
    fingerprint = manifest.base.fingerprint
    metadata = {**weights_metadata(resolved.adapter.name), "base_fingerprint": fingerprint}
    if any(update.added is not None for update in resolved.updates):
        metadata[FIXED_SCALE] = "1"
    found: dict[str, MemoryTensor] = {}
    for update in resolved.updates:
        dtype = update.parameter.stored_dtype
        for name, compute in values_of(update, stored.get(update.parameter.name)).items():
            kept = cast(np.ascontiguousarray(compute()), dtype, name=name)
            found[name] = MemoryTensor(name, dtype, kept)
    return found, metadata
