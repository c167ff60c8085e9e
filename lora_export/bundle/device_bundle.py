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

import io
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.bundle.adapter_selection import select
from lora_export.bundle.bundle_names import name_of
from lora_export.bundle.coverage import require_cover, require_cover_of_decoder
from lora_export.bundle.packing import Packed, pack, require_replaceable, require_vacant
from lora_export.bundle.program import program
from lora_export.core.errors import ParityError, UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.core.manifest import MANIFEST_NAME, manifest_bytes, read_manifest
from lora_export.core.modes import BASE_GRAPH, Mode
from lora_export.core.npz_file import npz_bytes
from lora_export.core.progress import Progress, Silent
from lora_export.core.safetensors_file import read_header
from lora_export.core.targets import require_tensorrt_target
from lora_export.core.version import VERSION
from lora_export.engines.engine_options import EngineOptions
from lora_export.engines.jobs import jobs_of, stem_of
from lora_export.engines.refittable import changed_weights
from lora_export.exports.base_config import read_base_config
from lora_export.exports.stacks import width_of
from lora_export.exports.stored_adapters import shared_graphs, stored_adapter
from lora_export.exports.verdict import verification_of
from lora_export.graph.adapters.required_inputs import base_values
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import PAST, own_cache
from lora_export.ondevice.bundle.index_values import (
    Check,
    Contents,
    EngineSource,
    GraphSource,
    LatencyPlan,
)
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.judge.decoding import WRITE_INDICES
from lora_export.ondevice.judge.golden_files import read_golden
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.swappable_inputs import padded_shape, smallest_rank
from lora_export.verification.golden import reading_of
from lora_export.verification.inputs.feeding import signature_of_file
from lora_export.verification.inputs.latency_case import latency_case
from lora_export.weights.positions import longest_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.core.targets import Target
    from lora_export.ondevice.trt.engine_builder import BuildJob

__all__ = ["LatencySettings", "bundle_export"]

LATENCY_FEEDS: Final = "latency.npz"
_NO_GOLDEN: Final = "the export has no golden outputs of it: it was not verified"


@dataclass(frozen=True)
class LatencySettings:
    """The settings of the device's latency measurement.

    Attributes:
        batch: Batch size of the measured input.
        length: Its length.
        rounds: Interleaved rounds.
        max_ratio: The largest allowed ratio of an adapter's latency to the base's.
    """

    batch: int = 1
    length: int = 128
    rounds: int = 120
    max_ratio: float = 1.05


def bundle_export(
    root: Path,
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
    """Pack an export for a device.

    Args:
        root: The export.
        target: The device.
        path: The archive.
        name: What the bundle, and the folder in the archive, is called; the export's and the
            target's name by default.
        adapters: Which adapters go with it; all by default.
        options: How engines are built there.
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
    row = require_tensorrt_target(target)
    if not path.is_dir():
        (require_replaceable if replace else require_vacant)(path)
    manifest = select(read_manifest(root), adapters)
    _require_fit(manifest, row)
    _require_verified(manifest, allow_failed=allow_failed)
    folder = name_of(root, target, name)
    graphs, rewritten = _graphs(root, manifest, target, options or EngineOptions())
    plan, feeds = _latency(root, manifest, latency or LatencySettings())
    base, checks = manifest.base, _checks(root, manifest)
    _require_cover(root, graphs, checks, feeds, rewritten)
    contents = Contents(target, base.dtype, base.fingerprint, graphs, checks, plan)
    for check, record in _verdicts(manifest).items():
        if record == "unverified":
            tell.note(f"note: {check} was not verified before it was bundled")
    return pack(
        path,
        folder,
        f"lora-export {VERSION}",
        contents,
        files={each: (resolve_inside(root, each), d) for each, d in manifest.files.items()},
        made={**program(), **rewritten, **feeds, MANIFEST_NAME: manifest_bytes(manifest)},
        replace=replace,
        progress=tell,
    )


def _verdicts(manifest: Manifest) -> dict[str, str]:
    """Return the verdict on the base, where it can be deployed, and on every adapter."""
    base = manifest.base_graph
    found: dict[str, str] = {} if base.missing else {BASE_GRAPH: base.verification}
    return found | {name: verification_of(manifest, name) for name in manifest.adapters}


def _require_fit(manifest: Manifest, target: Target) -> None:
    """Require that the target computes in the export's dtype, and parses its opset."""
    if manifest.base.dtype not in target.dtypes:
        msg = f"the export is {manifest.base.dtype}, in which {target.name} does not compute"
        raise UnsupportedError(msg, hint=f"Export again with --dtype {' or '.join(target.dtypes)}.")
    for name, record in manifest.graphs.items():
        if record.opset > target.opset:
            msg = f"the graph {name!r} is of opset {record.opset}, {target.name} has {target.opset}"
            raise UnsupportedError(msg, hint=f"Export again with --target {target.name}.")


def _require_verified(manifest: Manifest, *, allow_failed: bool) -> None:
    shared = shared_graphs(manifest)
    verdicts = _verdicts(manifest) | {n: manifest.graphs[n].verification for n in shared}
    failed = [name for name, verdict in verdicts.items() if verdict == "fail"]
    if failed and not allow_failed:
        msg = f"{', '.join(failed)} failed the verification and is not bundled"
        raise ParityError(msg, hint="See reports/parity.json; --allow-failed bundles it anyway.")


def _graphs(
    root: Path, manifest: Manifest, target: str, options: EngineOptions
) -> tuple[dict[str, GraphSource], dict[str, bytes]]:
    """Return the facts about every graph, and the files that TensorRT gets in their place."""
    found: dict[str, GraphSource] = {}
    made: dict[str, bytes] = {}
    marked = _marked(root, manifest, target, options) if options.refit else frozenset()
    for name, record in manifest.graphs.items():
        refit = record.mode is Mode.MERGED and _is_refit(root, manifest, name, marked)
        jobs = [] if refit else _jobs(root, manifest, target, name, options)
        for file in record.graph_files:
            if refit:
                reason = "its weights are put into the base's engine"
                found[stem_of(file)] = GraphSource(file, None, reason)
                continue
            job = next(each for each in jobs if each.onnx == file)
            source, rewritten = _engine(root, job)
            found[stem_of(file)] = GraphSource(file, source)
            made |= rewritten
    return found, made


def _marked(root: Path, manifest: Manifest, target: str, options: EngineOptions) -> frozenset[str]:
    """Return the weights that can be changed in the engine of the base."""
    (job,) = _jobs(root, manifest, target, BASE_GRAPH, options)
    return frozenset(job.settings.refittable)


def _is_refit(root: Path, manifest: Manifest, adapter: str, marked: frozenset[str]) -> bool:
    """Whether an adapter can be put into the base's engine; a wider head cannot."""
    if not marked:
        return False
    graph = parse_onnx(read_graph(resolve_inside(root, manifest.base_graph.onnx))).graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    changed = changed_weights(root, manifest, adapter)
    return bool(changed) and all(
        name in marked and shapes[name] == each.shape for name, each in changed.items()
    )


def _jobs(
    root: Path, manifest: Manifest, target: str, name: str, options: EngineOptions
) -> list[BuildJob]:
    """Return the engines of a graph; a base without a head is built for its latency."""
    record = manifest.graphs[name]
    graphs = {**manifest.graphs, name: record.model_copy(update={"missing": []})}
    if record.mode is not Mode.BASE:  # an engine of its own needs no other weights
        options = replace(options, refit=False)
    return jobs_of(root, manifest.model_copy(update={"graphs": graphs}), target, [name], options)


def _engine(root: Path, job: BuildJob) -> tuple[EngineSource, dict[str, bytes]]:
    source = EngineSource(job.onnx, list(job.weights), job.settings.to_json(), dict(job.refit))
    if job.model is None:
        return source, {}
    onnx, defaults = f"{job.graph}.tensorrt.onnx", f"{job.graph}.defaults.npz"
    rank = smallest_rank(job.settings.profiles)
    values = base_values(read_graph(resolve_inside(root, job.onnx)), root, rank=rank)
    made = {onnx: job.model, defaults: npz_bytes(values)}
    return replace(source, onnx=onnx, defaults=defaults), made


def _checks(root: Path, manifest: Manifest) -> dict[str, Check]:
    """Return the comparisons for the device: the base, and every adapter."""
    base = manifest.base_graph
    reason = _NO_GOLDEN
    if base.missing:
        reason = f"the base has no {', '.join(base.missing)}; only adapters bring them"
    golden = None if base.missing else base.golden
    found = {BASE_GRAPH: _check(root, manifest, base, golden, reason)}
    for name in manifest.adapters:
        stored = stored_adapter(manifest, name)
        check = _check(
            root, manifest, manifest.graphs[stored.graph], stored.record.golden, _NO_GOLDEN
        )
        width = None if stored.row is None else width_of(root, manifest, stored.row)
        refit = stored.weights[0] if len(stored.weights) == 1 else None
        found[name] = replace(check, pack=stored.pack, row=stored.row, width=width, refit=refit)
    return found


def _check(
    root: Path, manifest: Manifest, record: GraphRecord, golden: str | None, reason: str
) -> Check:
    reading = reading_of(root, manifest, record)
    encoder = None if record.encoder is None else stem_of(record.encoder.onnx)
    return Check(
        stem_of(record.onnx),
        reading,
        encoder=encoder,
        empty={} if encoder is None else _empty(root, record.onnx),
        buffers=_buffers(root, manifest, record.onnx),
        golden=golden,
        reason=None if golden is not None else reason,
    )


def _empty(root: Path, onnx: str) -> dict[str, list[Any]]:
    """Return heads, width and dtype of each input of a decoder's own cache."""
    cache = own_cache(signature_of_file(root, onnx).inputs)
    return {name: list(row) for name, row in cache.items()}


def _buffers(root: Path, manifest: Manifest, onnx: str) -> dict[str, list[Any]]:
    """Return heads, positions, width and dtype of each buffer of a static cache."""
    if manifest.base.cache_length is None:
        return {}
    return {
        each.name: [*each.axes[1:], each.dtype]
        for each in signature_of_file(root, onnx).inputs
        if each.name.startswith(PAST)
    }


def _latency(
    root: Path, manifest: Manifest, settings: LatencySettings
) -> tuple[LatencyPlan, dict[str, bytes]]:
    """Return how latency is measured, and the file of its inputs.

    Behind the text of a decoder there is room for a step. The buffers of a static cache are made on
    the device.
    """
    length = min(settings.length, _room(root, manifest))
    case, reason = latency_case(root, manifest, batch=settings.batch, length=length, seed=0)
    if case is None:
        return LatencyPlan(None, settings.rounds, settings.max_ratio, reason), {}
    static = WRITE_INDICES in case.feeds
    kept = {k: v for k, v in case.feeds.items() if not (static and k.startswith(PAST))}
    feeds = {LATENCY_FEEDS: npz_bytes(kept)}
    return LatencyPlan(LATENCY_FEEDS, settings.rounds, settings.max_ratio), feeds


def _room(root: Path, manifest: Manifest) -> int:
    """Return how long a text may be that a decoder with a cache can go on from."""
    if not manifest.base.cache:
        return sys.maxsize
    config = read_base_config(root)
    return max(1, min(longest_text(config), manifest.base.cache_length or sys.maxsize) - 1)


def _require_cover(
    root: Path,
    graphs: dict[str, GraphSource],
    checks: dict[str, Check],
    feeds: dict[str, bytes],
    made: dict[str, bytes],
) -> None:
    """Require of every engine that it takes its golden inputs, and those of the latency."""
    measured = {name: np.load(io.BytesIO(data), allow_pickle=False) for name, data in feeds.items()}
    for name, check in checks.items():
        engine = graphs[check.graph if check.encoder is None else check.encoder].engine
        engine = engine or graphs[BASE_GRAPH].engine
        if engine is None:
            continue
        values = _shapes_of_values(root, engine, check, made)
        if check.golden is not None:
            for case in read_golden(resolve_inside(root, check.golden)).cases:
                require_cover(name, engine, case.feeds, step=False, further=values)
                decoder = graphs[check.graph].engine
                if check.encoder is not None and decoder is not None:
                    require_cover_of_decoder(name, decoder, case.feeds)
        for arrays in measured.values():
            what = f"the latency of {name}"
            require_cover(what, engine, dict(arrays), step=True, further=values)


def _shapes_of_values(
    root: Path, engine: EngineSource, check: Check, made: dict[str, bytes]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an adapter's values as the engine of a swappable graph is fed them."""
    if check.pack is None or engine.defaults is None:
        return {}
    with np.load(io.BytesIO(made[engine.defaults]), allow_pickle=False) as defaults:
        shapes = {name: defaults[name].shape for name in defaults.files}
    tensors, _ = read_header(resolve_inside(root, check.pack))
    shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    rank = smallest_rank(BuildSettings.from_json(engine.settings).profiles)
    return {name: padded_shape(name, shape, rank) for name, shape in shapes.items()}
