"""The contents of a bundle for a device: graphs, weights, golden outputs, entry point.

    bundle.json                 the index
    run.py                      the entry point: build, verify, measure
    lora_export/ondevice/       what it runs, as it is
    lora_export.json, *.onnx, weights/, adapters/, golden/, hf/     the export
    latency.npz                 the inputs that latency is measured with
    <graph>.tensorrt.onnx, <graph>.defaults.npz     of a swappable graph: what TensorRT is given

The device needs Python 3.10, NumPy 1.21 and JetPack's TensorRT, or ONNX Runtime in its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.bundle.adapter_selection import select
from lora_export.bundle.bundle_names import name_of
from lora_export.bundle.bundled_checks import (
    LatencySettings,
    checks_of,
    latency_of,
    require_covered,
    require_verified,
    unverified,
)
from lora_export.bundle.packing import Packed, pack, require_replaceable, require_vacant
from lora_export.bundle.program import program
from lora_export.bundle.ready_bundle import bundle_ready_engines
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.manifest import MANIFEST_NAME, manifest_bytes, read_manifest
from lora_export.core.modes import BASE_GRAPH, Mode
from lora_export.core.npz_file import npz_bytes
from lora_export.core.progress import Progress, Silent
from lora_export.core.quantization import BLOCKS_OPSET
from lora_export.core.targets import require_tensorrt_target
from lora_export.core.version import VERSION
from lora_export.engines.engine_options import EngineOptions, library_for
from lora_export.engines.jobs import jobs_of, require_portable_graphs, stem_of
from lora_export.engines.refittable import changed_weights
from lora_export.graph.adapters.required_inputs import base_values
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.bundle.index_values import Contents, EngineSource, GraphSource
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.trt.libraries import library_row
from lora_export.ondevice.trt.swappable_inputs import smallest_rank

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.core.targets import Target
    from lora_export.ondevice.trt.engine_builder import BuildJob

__all__ = ["LatencySettings", "bundle_export"]


def bundle_export(
    export_dir: Path,
    target: str,
    path: Path,
    *,
    name: str | None = None,
    adapters: Sequence[str] = (),
    options: EngineOptions | None = None,
    latency: LatencySettings | None = None,
    allow_failed: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Pack an export for a device; with TensorRT for RTX, the engines that it has built.

    Args:
        export_dir: The export.
        target: The device.
        path: The archive.
        name: What the bundle, and the folder in the archive, is called; the export's and the
            target's name by default.
        adapters: Which adapters go with it; all by default.
        options: How engines are built there. With TensorRT for RTX only the library counts: its
            engines are built before.
        latency: How latency is measured there.
        allow_failed: Whether a graph that failed its verification may go.
        replace: Whether a bundle at `path` may be replaced.
        progress: Told what happens.

    Raises:
        ParityError: A graph failed its verification.
        UsageError: The name, an adapter or a profile is wrong.
        UnsupportedError: The target cannot run the export.
        BundleError: A file is not what the manifest says, or something is at `path`.
        LoraExportError: See its class; nothing is left behind.
    """
    tell = progress or Silent()
    options = options or EngineOptions(library=library_for(target, None))
    if library_row(options.library).builds_ahead:
        _refuse_options(options)
        return bundle_ready_engines(
            export_dir,
            target,
            path,
            name=name,
            adapters=adapters,
            latency=latency,
            allow_failed=allow_failed,
            replace=replace,
            progress=tell,
        )
    row = require_tensorrt_target(target)
    if not path.is_dir():
        (require_replaceable if replace else require_vacant)(path)
    manifest = select(read_manifest(export_dir), adapters)
    _require_fit(manifest, row, tell)
    require_verified(manifest, allow_failed=allow_failed)
    folder = name_of(export_dir, target, name)
    graphs, rewritten = _graphs(export_dir, manifest, target, options)
    plan, feeds = latency_of(export_dir, manifest, latency or LatencySettings())
    base, checks = manifest.base, checks_of(export_dir, manifest)
    require_covered(export_dir, graphs, checks, feeds, rewritten)
    contents = Contents(target, base.dtype, base.fingerprint, graphs, checks, plan)
    for check in unverified(manifest):
        tell.note(f"note: {check} was not verified before it was bundled")
    return pack(
        path,
        folder,
        f"lora-export {VERSION}",
        contents,
        files={each: (resolve_inside(export_dir, each), d) for each, d in manifest.files.items()},
        made={**program(), **rewritten, **feeds, MANIFEST_NAME: manifest_bytes(manifest)},
        replace=replace,
        progress=tell,
    )


def _refuse_options(options: EngineOptions) -> None:
    """Refuse what concerns the build of engines, where they are built already."""
    given = {"--profile": bool(options.profiles), "--refit": options.refit}
    for flag, is_given in given.items():
        if is_given:
            title = library_row(options.library).title
            msg = f"{flag} is for engines that are built on the device; these were built by {title}"
            raise UsageError(msg, hint=f"Leave {flag} out, or build the engines again.")


def _require_fit(manifest: Manifest, target: Target, tell: Progress) -> None:
    """Require that the target has the operators of the graphs, their dtype and opset.

    Weights in blocks have an opset of their own, which not all software of a target need read.
    """
    require_portable_graphs(manifest)
    if manifest.base.dtype not in target.dtypes:
        msg = f"the export is {manifest.base.dtype}, in which {target.name} does not compute"
        raise UnsupportedError(msg, hint=f"Export again with --dtype {' or '.join(target.dtypes)}.")
    opset = max(target.opset, BLOCKS_OPSET) if _has_blocks(manifest) else target.opset
    if opset > target.opset and target.blocks is not None:
        oldest = target.software[target.tensorrt.index(target.blocks)]
        tell.note(f"note: weights in blocks of scales need opset {opset}, and so {oldest} or newer")
    for name, record in manifest.graphs.items():
        if record.opset > opset:
            msg = f"the graph {name!r} has opset {record.opset}, {target.name} supports {opset}"
            raise UnsupportedError(msg, hint=f"Export again with --target {target.name}.")


def _has_blocks(manifest: Manifest) -> bool:
    """Return whether weights are quantized in blocks."""
    uses = (use.quantized for uses in manifest.parameters.values() for use in uses)
    return any(each is not None and each.block_size for each in uses)


def _graphs(
    export_dir: Path, manifest: Manifest, target: str, options: EngineOptions
) -> tuple[dict[str, GraphSource], dict[str, bytes]]:
    """Return the facts about every graph, and the files that TensorRT gets in their place."""
    found: dict[str, GraphSource] = {}
    made: dict[str, bytes] = {}
    marked = _marked(export_dir, manifest, target, options) if options.refit else frozenset()
    for name, record in manifest.graphs.items():
        refit = record.mode is Mode.MERGED and _is_refit(export_dir, manifest, name, marked)
        jobs = [] if refit else _jobs(export_dir, manifest, target, name, options)
        for file in record.graph_files:
            if refit:
                reason = "its weights are put into the base's engine"
                found[stem_of(file)] = GraphSource(file, None, reason)
                continue
            job = next(each for each in jobs if each.onnx == file)
            source, rewritten = _engine(export_dir, job)
            found[stem_of(file)] = GraphSource(file, source)
            made |= rewritten
    return found, made


def _marked(
    export_dir: Path, manifest: Manifest, target: str, options: EngineOptions
) -> frozenset[str]:
    """Return the weights that can be changed in the engine of the base."""
    (job,) = _jobs(export_dir, manifest, target, BASE_GRAPH, options)
    return frozenset(job.settings.refittable)


def _is_refit(export_dir: Path, manifest: Manifest, adapter: str, marked: frozenset[str]) -> bool:
    """Whether an adapter can be put into the base's engine; a wider head cannot."""
    if not marked:
        return False
    graph = parse_onnx(read_graph(resolve_inside(export_dir, manifest.base_graph.onnx))).graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    changed = changed_weights(export_dir, manifest, adapter)
    return bool(changed) and all(
        name in marked and shapes[name] == each.shape for name, each in changed.items()
    )


def _jobs(
    export_dir: Path, manifest: Manifest, target: str, name: str, options: EngineOptions
) -> list[BuildJob]:
    """Return the engines of a graph; a base without a head is built for its latency."""
    record = manifest.graphs[name]
    graphs = {**manifest.graphs, name: record.model_copy(update={"missing": []})}
    if record.mode is not Mode.BASE:  # an engine of its own needs no other weights
        options = replace(options, refit=False)
    return jobs_of(
        export_dir, manifest.model_copy(update={"graphs": graphs}), target, [name], options
    )


def _engine(export_dir: Path, job: BuildJob) -> tuple[EngineSource, dict[str, bytes]]:
    source = EngineSource(job.onnx, list(job.weights), job.settings.to_json(), dict(job.refit))
    if job.model is None:
        return source, {}
    onnx, defaults = f"{job.graph}.tensorrt.onnx", f"{job.graph}.defaults.npz"
    rank = smallest_rank(job.settings.profiles)
    values = base_values(read_graph(resolve_inside(export_dir, job.onnx)), export_dir, rank=rank)
    made = {onnx: job.model, defaults: npz_bytes(values)}
    return replace(source, onnx=onnx, defaults=defaults), made
