"""The contents of a bundle with ready engines: plans, records, golden outputs, entry point.

    bundle.json                 the index
    run.py                      the entry point: compile, verify, measure
    lora_export/ondevice/       what it runs, as it is
    engines/                    plans of TensorRT for RTX, and their records
    golden/, adapters/, hf/     golden outputs, packs of a swappable export, tokenizer and config
    latency.npz                 the inputs that latency is measured with
    <graph>.defaults.npz        of a swappable graph: the base as values of its inputs

TensorRT for RTX builds engines ahead of time, so that neither graphs nor weights go along. The
device needs Python 3.10, NumPy 1.21, the library and NVIDIA's driver.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from lora_export.bundle.adapter_selection import select
from lora_export.bundle.bundle_names import name_of
from lora_export.bundle.bundled_checks import (
    LatencySettings,
    base_check,
    checks_of,
    latency_of,
    require_covered,
    require_verified,
    unverified,
)
from lora_export.bundle.packing import Packed, pack, require_replaceable, require_vacant
from lora_export.bundle.program import program
from lora_export.core.engine_record import read_engine_record
from lora_export.core.errors import UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import BASE_GRAPH, Mode
from lora_export.core.npz_file import npz_bytes
from lora_export.core.progress import Progress, Silent
from lora_export.core.targets import RTX, require_engine_target
from lora_export.core.version import VERSION
from lora_export.engines.jobs import stem_of
from lora_export.exports.stacks import width_of
from lora_export.exports.stored_adapters import mode_of, shared_graphs
from lora_export.graph.adapters.required_inputs import base_values
from lora_export.ondevice.bundle.index_values import (
    Contents,
    EngineSource,
    GraphSource,
    LatencyPlan,
)
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.printable import shell_command
from lora_export.ondevice.trt.build_record import (
    FOLDER,
    read_record,
    record_file,
    require_files,
)
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.libraries import LIBRARIES, TENSORRT_RTX
from lora_export.ondevice.trt.swappable_inputs import smallest_rank
from lora_export.ondevice.trt.versions import parse_version

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.ondevice.bundle.index_values import Check

__all__ = ["bundle_ready_engines"]

_CARRIED: Final = ("golden/", "hf/")
"""Folders of an export that go along whole; packs of adapters go as far as they are compared."""

_NO_HEAD: Final = "the base has no engine to compare with: only adapters bring its head"
_TAG: Final = LIBRARIES[TENSORRT_RTX].tag


@dataclass(frozen=True)
class _Engines:
    """The engines of a bundle.

    Attributes:
        graphs: Every graph, by its stem.
        files: Plans and records with their SHA-256.
        made: The values of optional inputs.
        sources: The SHA-256 of what the plans were built from.
    """

    graphs: dict[str, GraphSource] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    made: dict[str, bytes] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


def bundle_ready_engines(
    export_dir: Path,
    target: str,
    path: Path,
    *,
    name: str | None = None,
    adapters: Sequence[str] = (),
    latency: LatencySettings | None = None,
    allow_failed: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Pack the engines of an export that TensorRT for RTX has built for a target.

    See `lora_export.bundle.device_bundle.bundle_export` for the arguments.

    Raises:
        ParityError: A graph failed its verification.
        UsageError: An engine is missing, or the target, the name or an adapter is wrong.
        DeviceError: An engine was built from other files than the export has now.
        BundleError: A file is not what the manifest says, or something is at `path`.
        LoraExportError: See its class; nothing is left behind.
    """
    tell = progress or Silent()
    require_engine_target(target, rtx=True)
    if not path.is_dir():
        (require_replaceable if replace else require_vacant)(path)
    whole = read_manifest(export_dir)
    manifest = select(whole, adapters)
    require_verified(manifest, allow_failed=allow_failed)
    folder = name_of(export_dir, target, name)
    engines = _engines(export_dir, whole, manifest, target)
    plan, feeds = _latency(export_dir, manifest, latency or LatencySettings())
    checks = _checks(export_dir, manifest)
    require_covered(export_dir, engines.graphs, checks, feeds, engines.made)
    contents = Contents(
        target,
        manifest.base.dtype,
        manifest.base.fingerprint,
        engines.graphs,
        checks,
        plan,
        TENSORRT_RTX,
        engines.sources,
    )
    for check in unverified(manifest):
        tell.note(f"note: {check} was not verified before it was bundled")
    packs = {check.pack for check in checks.values()}
    carried = {f: d for f, d in manifest.files.items() if f.startswith(_CARRIED) or f in packs}
    return pack(
        path,
        folder,
        f"lora-export {VERSION}",
        contents,
        files={
            f: (resolve_inside(export_dir, f), d) for f, d in {**carried, **engines.files}.items()
        },
        made={**program(), **engines.made, **feeds},
        replace=replace,
        progress=tell,
    )


def _served(manifest: Manifest) -> tuple[str, ...]:
    """Return the graphs whose engines are needed: the shared one, or the base's and the adapters'.

    A base without a head has no engine.
    """
    shared = shared_graphs(manifest)
    return shared or tuple(name for name, each in manifest.graphs.items() if not each.missing)


def _engines(export_dir: Path, whole: Manifest, manifest: Manifest, target: str) -> _Engines:
    """Return the engines of the graphs that are needed, all of one version.

    Raises:
        UsageError: One is missing; the command that builds what is missing is named.
    """
    served = _served(manifest)
    stems = {stem_of(file): name for name in served for file in manifest.graphs[name].graph_files}
    version = _version(whole, target, stems)
    plans = {stem: f"{FOLDER}/{stem}.{target}.{_TAG}{version}.plan" for stem in stems}
    listed = [s for s, plan in plans.items() if {plan, record_file(plan)} <= set(whole.files)]
    if missing := list(dict.fromkeys(stems[stem] for stem in stems if stem not in listed)):
        names = ", ".join(map(repr, missing))
        msg = f"a bundle for {target!r} takes engines of {names}, which are not built yet"
        builder = [] if target == RTX else ["--builder", TENSORRT_RTX]
        graphs = [word for each in missing for word in ("--graph", each)]
        command = ["lora-export", "build", str(export_dir), "--target", target, *builder, *graphs]
        raise UsageError(msg, hint=f"Build them, on any machine: {shell_command(command)}")
    found = _Engines()
    if manifest.base_graph.missing and not shared_graphs(manifest):
        found.graphs[stem_of(manifest.base_graph.onnx)] = GraphSource(None, None, _NO_HEAD)
    for stem, plan in plans.items():
        _add_engine(found, export_dir, whole, stem, plan)
    return found


def _version(manifest: Manifest, target: str, stems: dict[str, str]) -> str:
    """Return the newest version of the library of which there are the most engines."""
    counts: dict[str, int] = {}
    for stem in stems:
        begin = f"{FOLDER}/{stem}.{target}.{_TAG}"
        for file in manifest.files:
            if file.startswith(begin) and file.endswith(".plan"):
                version = file.removeprefix(begin).removesuffix(".plan")
                counts[version] = counts.get(version, 0) + 1
    return max(counts, key=lambda each: (counts[each], _order(each)), default="")


def _order(version: str) -> tuple[tuple[int, int], str]:
    return parse_version(version, TENSORRT_RTX), version


def _add_engine(
    found: _Engines, export_dir: Path, manifest: Manifest, stem: str, plan: str
) -> None:
    """Add one engine, with what it needs; changes `found`.

    Raises:
        LoraExportError: Its record is damaged, or of other files than the export has now.
    """
    path = resolve_inside(export_dir, plan)
    record = read_engine_record(path)
    require_files(read_record(path), manifest.files, manifest.base.fingerprint)
    (onnx,) = record.onnx
    source = EngineSource(onnx, list(record.weights), record.settings, plan=plan)
    graphs = [each for each in manifest.graphs.values() if each.onnx == onnx]
    if any(each.mode is Mode.SWAPPABLE for each in graphs):
        rank = smallest_rank(BuildSettings.from_json(record.settings).profiles)
        values = base_values(read_graph(resolve_inside(export_dir, onnx)), export_dir, rank=rank)
        source = replace(source, defaults=f"{stem}.defaults.npz")
        found.made[f"{stem}.defaults.npz"] = npz_bytes(values)
    found.graphs[stem] = GraphSource(None, source)
    found.files.update({file: manifest.files[file] for file in (plan, record_file(plan))})
    found.sources.update({**record.onnx, **record.weights})


def _checks(export_dir: Path, manifest: Manifest) -> dict[str, Check]:
    """Return the comparisons; a shared graph computes the base too, and nothing is refitted."""
    found = {
        name: replace(each, refit=None) for name, each in checks_of(export_dir, manifest).items()
    }
    for name in shared_graphs(manifest):
        base = base_check(export_dir, manifest, manifest.graphs[name])
        if mode_of(manifest) is Mode.BATCHED:
            base = replace(base, row=0, width=width_of(export_dir, manifest, 0))
        found[BASE_GRAPH] = base
    return found


def _latency(
    export_dir: Path, manifest: Manifest, settings: LatencySettings
) -> tuple[LatencyPlan, dict[str, bytes]]:
    """Return how latency is measured, and the file of its inputs."""
    if manifest.base_graph.missing and not shared_graphs(manifest):
        return LatencyPlan(None, settings.rounds, settings.max_ratio, _NO_HEAD), {}
    return latency_of(export_dir, manifest, settings)
