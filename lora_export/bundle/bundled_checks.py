"""The comparisons and the measurement of a bundle: what its program does on the device.

    golden/                     golden outputs of the base and of each adapter
    latency.npz                 the inputs that latency is measured with

Both are known when the bundle is packed, and have to lie in the profiles of its engines.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.bundle.coverage import require_cover, require_cover_of_decoder
from lora_export.core.errors import ParityError
from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH
from lora_export.core.npz_file import npz_bytes
from lora_export.core.safetensors_file import read_header
from lora_export.engines.jobs import stem_of
from lora_export.exports.base_config import read_base_config
from lora_export.exports.stacks import width_of
from lora_export.exports.stored_adapters import shared_graphs, stored_adapter
from lora_export.exports.verdict import lossy_names, verification_of
from lora_export.graph.spec.signature import PAST, own_cache
from lora_export.ondevice.bundle.index_values import Check, LatencyPlan
from lora_export.ondevice.judge.decoding import WRITE_INDICES
from lora_export.ondevice.judge.golden_files import read_golden
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.swappable_inputs import padded_shape, smallest_rank
from lora_export.verification.golden import reading_of
from lora_export.verification.inputs.feeding import signature_of_file
from lora_export.verification.inputs.latency_case import latency_case
from lora_export.weights.positions import longest_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.ondevice.bundle.index_values import EngineSource, GraphSource

__all__ = [
    "LatencySettings",
    "base_check",
    "checks_of",
    "latency_of",
    "require_covered",
    "require_verified",
    "unverified",
]

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


def unverified(manifest: Manifest) -> list[str]:
    """Return the base and the adapters that were not verified."""
    return [name for name, verdict in _verdicts(manifest).items() if verdict == "unverified"]


def _verdicts(manifest: Manifest) -> dict[str, str]:
    """Return the verdict on the base, where it can be deployed, and on every adapter."""
    base = manifest.base_graph
    found: dict[str, str] = {} if base.missing else {BASE_GRAPH: base.verification}
    return found | {name: verification_of(manifest, name) for name in manifest.adapters}


def require_verified(manifest: Manifest, *, allow_failed: bool) -> None:
    """Require that nothing of an export has failed its verification.

    Raises:
        ParityError: A graph or an adapter has, and that is not allowed.
    """
    shared = shared_graphs(manifest)
    verdicts = _verdicts(manifest) | {n: manifest.graphs[n].verification for n in shared}
    failed = [name for name, verdict in verdicts.items() if verdict == "fail"]
    if failed and not allow_failed:
        msg = f"not bundled, because the verification failed: {', '.join(failed)}"
        raise ParityError(msg, hint="See reports/parity.json; --allow-failed bundles it anyway.")
    if (lost := lossy_names(manifest)) and not allow_failed:
        msg = f"not bundled, because quantization loses too much: {', '.join(lost)}"
        raise ParityError(
            msg, hint="See reports/quantization.json; --allow-failed bundles it anyway."
        )


def checks_of(export_dir: Path, manifest: Manifest) -> dict[str, Check]:
    """Return the comparisons for the device: the base, and every adapter."""
    found = {BASE_GRAPH: base_check(export_dir, manifest, manifest.base_graph)}
    for name in manifest.adapters:
        stored = stored_adapter(manifest, name)
        graph = manifest.graphs[stored.graph]
        check = _check(export_dir, manifest, graph, stored.record.golden, _NO_GOLDEN)
        width = None if stored.row is None else width_of(export_dir, manifest, stored.row)
        refit = stored.weights[0] if len(stored.weights) == 1 else None
        found[name] = replace(check, pack=stored.pack, row=stored.row, width=width, refit=refit)
    return found


def base_check(export_dir: Path, manifest: Manifest, graph: GraphRecord) -> Check:
    """Return the comparison of the base, which `graph` computes."""
    base = manifest.base_graph
    if base.missing:
        reason = f"the base has no {', '.join(base.missing)}; only adapters bring them"
        return _check(export_dir, manifest, graph, None, reason)
    return _check(export_dir, manifest, graph, base.golden, _NO_GOLDEN)


def _check(
    export_dir: Path, manifest: Manifest, record: GraphRecord, golden: str | None, reason: str
) -> Check:
    reading = reading_of(export_dir, manifest, record)
    encoder = None if record.encoder is None else stem_of(record.encoder.onnx)
    return Check(
        stem_of(record.onnx),
        reading,
        encoder=encoder,
        empty={} if encoder is None else _empty(export_dir, record.onnx),
        buffers=_buffers(export_dir, manifest, record.onnx),
        golden=golden,
        reason=None if golden is not None else reason,
    )


def _empty(export_dir: Path, onnx: str) -> dict[str, list[Any]]:
    """Return heads, width and dtype of each input of a decoder's own cache."""
    cache = own_cache(signature_of_file(export_dir, onnx).inputs)
    return {name: list(row) for name, row in cache.items()}


def _buffers(export_dir: Path, manifest: Manifest, onnx: str) -> dict[str, list[Any]]:
    """Return heads, positions, width and dtype of each buffer of a static cache."""
    if manifest.base.cache_length is None:
        return {}
    return {
        each.name: [*each.axes[1:], each.dtype]
        for each in signature_of_file(export_dir, onnx).inputs
        if each.name.startswith(PAST)
    }


def latency_of(
    export_dir: Path, manifest: Manifest, settings: LatencySettings
) -> tuple[LatencyPlan, dict[str, bytes]]:
    """Return how latency is measured, and the file of its inputs.

    Behind the text of a decoder there is room for a step. The buffers of a static cache are made on
    the device.
    """
    length = min(settings.length, _room(export_dir, manifest))
    case, reason = latency_case(export_dir, manifest, batch=settings.batch, length=length, seed=0)
    if case is None:
        return LatencyPlan(None, settings.rounds, settings.max_ratio, reason), {}
    static = WRITE_INDICES in case.feeds
    kept = {k: v for k, v in case.feeds.items() if not (static and k.startswith(PAST))}
    feeds = {LATENCY_FEEDS: npz_bytes(kept)}
    return LatencyPlan(LATENCY_FEEDS, settings.rounds, settings.max_ratio), feeds


def _room(export_dir: Path, manifest: Manifest) -> int:
    """Return how long a text may be that a decoder with a cache can go on from."""
    if not manifest.base.cache:
        return sys.maxsize
    config = read_base_config(export_dir)
    return max(1, min(longest_text(config), manifest.base.cache_length or sys.maxsize) - 1)


def require_covered(
    export_dir: Path,
    graphs: Mapping[str, GraphSource],
    checks: Mapping[str, Check],
    feeds: Mapping[str, bytes],
    made: Mapping[str, bytes],
) -> None:
    """Require of every engine that it takes its golden inputs, and those of the latency.

    Args:
        export_dir: The export.
        graphs: The graphs of the bundle, with their engines.
        checks: The comparisons.
        feeds: The inputs of the latency, an ``.npz`` by its name.
        made: The values of optional inputs, likewise.

    Raises:
        UsageError: No profile covers one.
    """
    measured = {name: np.load(io.BytesIO(data), allow_pickle=False) for name, data in feeds.items()}
    for name, check in checks.items():
        engine = graphs[check.graph if check.encoder is None else check.encoder].engine
        if engine is None and BASE_GRAPH in graphs:
            engine = graphs[BASE_GRAPH].engine
        if engine is None:
            continue
        values = _shapes_of_values(export_dir, engine, check, made)
        if check.golden is not None:
            for case in read_golden(resolve_inside(export_dir, check.golden)).cases:
                require_cover(name, engine, case.feeds, step=False, further=values)
                decoder = graphs[check.graph].engine
                if check.encoder is not None and decoder is not None:
                    require_cover_of_decoder(name, decoder, case.feeds)
        for arrays in measured.values():
            what = f"the latency of {name}"
            require_cover(what, engine, dict(arrays), step=True, further=values)


def _shapes_of_values(
    export_dir: Path, engine: EngineSource, check: Check, made: Mapping[str, bytes]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an adapter's values as the engine of a swappable graph is fed them."""
    if check.pack is None or engine.defaults is None:
        return {}
    with np.load(io.BytesIO(made[engine.defaults]), allow_pickle=False) as defaults:
        shapes = {name: defaults[name].shape for name in defaults.files}
    tensors, _ = read_header(resolve_inside(export_dir, check.pack))
    shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    rank = smallest_rank(BuildSettings.from_json(engine.settings).profiles)
    return {name: padded_shape(name, shape, rank) for name, shape in shapes.items()}
