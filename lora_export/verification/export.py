"""The verification of a whole export: parity of every graph, then latency of every adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import AdapterError
from lora_export.core.files import atomic_write_bytes, resolve_inside
from lora_export.core.manifest import read_manifest
from lora_export.core.memory import available_bytes
from lora_export.core.modes import BASE_GRAPH, SWAPPABLE_GRAPH, Mode
from lora_export.core.reports.latency_report import LatencyReport, LatencyRow, unmeasured_row
from lora_export.core.reports.parity_report import ParityReport
from lora_export.core.reports.quantization_report import QuantizationReport
from lora_export.core.reports.report_model import as_json
from lora_export.exports.adapter_companions import companions_of
from lora_export.exports.plan import head_width
from lora_export.exports.stored_adapters import stored_adapter
from lora_export.exports.stored_values import parameters_of
from lora_export.graph.spec import tasks
from lora_export.ondevice.judge.golden_files import read_golden
from lora_export.ondevice.judge.latency_row import latency_row, measure_pair
from lora_export.runtime.open_adapter_graph import open_runner
from lora_export.runtime.ort import OrtRunner
from lora_export.verification.batched_check import judge_batched
from lora_export.verification.comparison import GraphChoice, prepare
from lora_export.verification.datasets.class_names import label_names
from lora_export.verification.datasets.dataset import Dataset, load_dataset, require_examples
from lora_export.verification.datasets.fitting import require_fitting
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.latency_case import further_feeds, latency_case
from lora_export.verification.loss.gates import LossGates
from lora_export.verification.loss.shared_rows import quantization_rows
from lora_export.verification.parity import (
    GraphParity,
    against_golden,
    against_reference,
    unverified,
)
from lora_export.verification.quantized_check import against_dequantized
from lora_export.verification.record import record_latency, record_parity
from lora_export.verification.swappable_check import judge_swapping

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.core.progress import Progress
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["Evidence", "head_labels", "measure_latency", "verify_export"]

_SESSIONS: Final = 2
_SESSION_FACTOR: Final = 2.0
"""A session holds its weights, and at worst a packed copy of them."""


@dataclass(frozen=True)
class _SharedGraph:
    """The checks of a graph that adapters share.

    Attributes:
        judge: Returns the verdict on the graph, from those on its adapters.
        fed_as: The graph with the inputs that each adapter is fed.
    """

    judge: Callable[..., GraphParity]
    fed_as: str


_SHARED: Final[Mapping[Mode, _SharedGraph]] = {
    Mode.SWAPPABLE: _SharedGraph(judge_swapping, SWAPPABLE_GRAPH),
    Mode.BATCHED: _SharedGraph(judge_batched, BASE_GRAPH),  # a row has the base's inputs
}


@dataclass(frozen=True)
class Evidence:
    """The reference and data that an export is compared with.

    Attributes:
        checkpoint: The base; None leaves the golden outputs.
        adapters: The adapters by name, as their authors published them.
        dataset: A JSONL file of examples; see `lora_export.verification.datasets`.
        metric: How they are scored; None for the default of the task.
        max_new_tokens: The most tokens of a text that is written for them.
        disagreements: Where every example on which graph and reference differ is written, a line
            of JSON each; None for nowhere.
        seed: Seeds the inputs.
        allow_no_effect: Whether an adapter may change nothing.
        only: Which adapters of a graph that they share are compared; None for all.
        gates: The limits of what quantization may cost.
    """

    checkpoint: Checkpoint | None
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    dataset: Path | None = None
    metric: str | None = None
    max_new_tokens: int = 64
    disagreements: Path | None = None
    seed: int = 0
    allow_no_effect: bool = False
    only: Collection[str] | None = None
    gates: LossGates = field(default_factory=LossGates)


def verify_export(
    export_dir: Path, names: Sequence[str], evidence: Evidence, progress: Progress
) -> tuple[ParityReport, QuantizationReport | None]:
    """Verify the graphs called `names` and record the verdicts; return the reports on them.

    Raises:
        AdapterError: An adapter that should be compared is not the one that was merged.
        MissingRuntimeError: What a comparison needs is not installed.
        StorageError: The verdicts cannot be written.
    """
    before, found = compare_export(export_dir, names, evidence, progress)
    record_parity(export_dir, before, found)
    return report_on(found), losses_of(before, found)


def report_on(found: Mapping[str, GraphParity]) -> ParityReport:
    """Return the report on graphs that were compared."""
    return ParityReport(graphs={name: parity.row for name, parity in found.items()})


def losses_of(manifest: Manifest, found: Mapping[str, GraphParity]) -> QuantizationReport | None:
    """Return the report on quantized graphs that were measured; None where there is none."""
    rows = quantization_rows(manifest, {}, found)
    return QuantizationReport(graphs=rows) if rows else None


def compare_export(
    export_dir: Path, names: Sequence[str], evidence: Evidence, progress: Progress
) -> tuple[Manifest, dict[str, GraphParity]]:
    """Compare the graphs called `names`; return the manifest as it is and the verdicts.

    Nothing is written into the export.

    Raises:
        AdapterError: An adapter that should be compared is not the one that was merged.
        MissingRuntimeError: What a comparison needs is not installed.
    """
    manifest = read_manifest(export_dir)
    if evidence.dataset is not None and evidence.checkpoint is not None:
        require_examples(evidence.dataset)
        require_fitting(
            evidence.dataset,
            _asked(manifest, names, evidence),
            lambda name: _dataset(export_dir, manifest, _fed_as(manifest, name), name, evidence),
        )
    found: dict[str, GraphParity] = {}
    for name in names:
        progress.start(f"parity of {name}")
        found[name] = _verify_one(export_dir, manifest, name, evidence)
    if evidence.disagreements is not None:
        lines = (json.dumps(each) + "\n" for each in _differing(found))
        atomic_write_bytes(evidence.disagreements, "".join(lines).encode())
    return manifest, found


def _asked(manifest: Manifest, names: Sequence[str], evidence: Evidence) -> list[str]:
    """Return the adapters that are compared with torch when the graphs called `names` are."""
    shared = any(manifest.graphs[name].mode in _SHARED for name in names)
    only = manifest.adapters if evidence.only is None else evidence.only
    return [
        name
        for name in manifest.adapters
        if name in evidence.adapters and (name in names or (shared and name in only))
    ]


def _fed_as(manifest: Manifest, name: str) -> GraphRecord:
    """Return the graph with the inputs that an adapter's examples are fed to."""
    stored = stored_adapter(manifest, name)
    shared = _SHARED.get(stored.mode)
    return manifest.graphs[stored.graph if shared is None else shared.fed_as]


def _differing(found: Mapping[str, GraphParity]) -> Iterator[dict[str, Any]]:
    """Yield every example on which a graph and its reference differ, with the adapter's name."""
    for name, parity in found.items():
        for each in parity.differing:
            yield {"adapter": name, **as_json(each)}
        yield from _differing(parity.adapters)


def _verify_one(export_dir: Path, manifest: Manifest, name: str, evidence: Evidence) -> GraphParity:
    record = manifest.graphs[name]
    shared = _SHARED.get(record.mode)
    if shared is None:
        found = _verify_graph(export_dir, manifest, record, name, evidence)
        return _with_notes(found, name, manifest, evidence)
    only = manifest.adapters if evidence.only is None else evidence.only
    adapters = {
        each: _with_notes(
            _verify_graph(export_dir, manifest, record, each, evidence), each, manifest, evidence
        )
        for each in manifest.adapters
        if each in only
    }
    return shared.judge(export_dir, manifest, adapters, seed=evidence.seed)


def _with_notes(
    found: GraphParity, name: str, manifest: Manifest, evidence: Evidence
) -> GraphParity:
    """Return a verdict with the notes on its adapter in the report's row."""
    known = evidence.adapters.get(name) or manifest.adapters.get(name)
    if known is None or not known.notes:
        return found
    return replace(found, row=found.row.model_copy(update={"notes": list(known.notes)}))


def _verify_graph(
    export_dir: Path, manifest: Manifest, record: GraphRecord, name: str, evidence: Evidence
) -> GraphParity:
    """Compare a graph, with its pack where the adapter is one, against what there is."""
    task = tasks.by_name(manifest.base.task)
    shared = _SHARED.get(record.mode)
    if record.missing and shared is None:
        return unverified(f"the base has no {', '.join(record.missing)}; only adapters bring them")
    adapter = evidence.adapters.get(name)
    record = record if shared is None else manifest.graphs[shared.fed_as]
    if evidence.checkpoint is None or (adapter is None and name in manifest.adapters):
        kept = stored_adapter(manifest, name).record.golden
        if kept is None:
            return unverified("there are no golden outputs; give the base: --base BASE")
        golden = read_golden(resolve_inside(export_dir, kept))
        return against_golden(
            export_dir, record, manifest, task, golden,
            allow_no_effect=evidence.allow_no_effect,
            open_runner=partial(open_runner, export_dir, manifest, name, exact=True),
        )  # fmt: skip
    if adapter is not None and adapter.sha256 != manifest.adapters[name].sha256:
        msg = f"{adapter.source!r} is not the adapter that was merged as {name!r}"
        raise AdapterError(msg, hint="Give that one, or add this one with: add --replace")
    choice = GraphChoice(
        export_dir, manifest, name, record, task, evidence.checkpoint, adapter,
        labels_count=_width(manifest, adapter),
        vocab_size=manifest.adapters[name].vocab_size if adapter is not None else None,
        open_runner=lambda exact: open_runner(export_dir, manifest, name, exact=exact),
        open_base=lambda exact: open_runner(export_dir, manifest, BASE_GRAPH, exact=exact),
    )  # fmt: skip
    dataset = (
        _dataset(export_dir, manifest, record, name, evidence) if adapter is not None else None
    )
    what = prepare(choice, seed=evidence.seed)
    if isinstance(what, str):
        return unverified(what)
    allow = evidence.allow_no_effect
    if manifest.base.quantization is not None:
        return against_dequantized(what, evidence.gates, dataset=dataset, allow_no_effect=allow)
    return against_reference(what, dataset=dataset, allow_no_effect=allow)


def _width(manifest: Manifest, adapter: Adapter | None) -> int | None:
    """Return the number of labels of a graph: the adapter's head, else the base graph's."""
    task = tasks.by_name(manifest.base.task)
    if adapter is not None and (width := head_width(task, adapter)) is not None:
        return width
    return head_labels(manifest)


def head_labels(manifest: Manifest) -> int | None:
    """Return the number of labels of the base graph's head; None where the task has none."""
    names = tasks.by_name(manifest.base.task).label_parameters
    own = (each.shape[0] for each in parameters_of(manifest) if each.name in names)
    return next(own, None)


def _dataset(
    export_dir: Path, manifest: Manifest, record: GraphRecord, name: str, evidence: Evidence
) -> Dataset | None:
    if evidence.dataset is None or evidence.checkpoint is None:
        return None
    task = tasks.by_name(manifest.base.task)
    width = _width(manifest, evidence.adapters.get(name))
    return load_dataset(
        evidence.dataset,
        task=task.name,
        metric=evidence.metric,
        companions=companions_of(export_dir, manifest, name),
        labels=label_names(
            manifest.adapters[name].labels, manifest.base.labels, evidence.checkpoint.config, width
        ),
        signature=feeding_of(export_dir, record).signature,
        config=evidence.checkpoint.config,
        width=width,
        left_padding=task.causal,
        room=manifest.base.cache_length,
        max_new_tokens=evidence.max_new_tokens,
    )


def measure_latency(
    export_dir: Path,
    names: Sequence[str],
    config: Mapping[str, Any],
    *,
    batch: int,
    length: int,
    rounds: int,
    max_ratio: float,
    seed: int,
    progress: Progress,
) -> tuple[Manifest, LatencyReport]:
    """Measure merged graphs against the base graph; return the manifest and the report.

    Args:
        export_dir: The export directory.
        names: The adapters.
        config: The model's config, for inputs.
        batch: Batch size.
        length: Sequence length.
        rounds: Interleaved rounds per adapter.
        max_ratio: The gate.
        seed: Seeds inputs, order and resampling.
        progress: Told what happens.
    """
    manifest = read_manifest(export_dir)
    rows: dict[str, LatencyRow] = {}
    for name in names:
        progress.start(f"latency of {name}")
        rows[name] = _measure_one(
            export_dir, manifest, name, config,
            batch=batch, length=length, rounds=rounds, max_ratio=max_ratio, seed=seed,
        )  # fmt: skip
    return record_latency(export_dir, rows), LatencyReport(graphs=rows)


def _measure_one(
    export_dir: Path,
    manifest: Manifest,
    name: str,
    config: Mapping[str, Any],
    *,
    batch: int,
    length: int,
    rounds: int,
    max_ratio: float,
    seed: int,
) -> LatencyRow:
    records = (manifest.base_graph, manifest.graphs[name])
    case, lacking = latency_case(
        export_dir, manifest, batch=batch, length=length, seed=seed, config=config
    )
    if case is None:
        return unmeasured_row(str(lacking))
    weights = sum((export_dir / file).stat().st_size for file in records[0].weights)
    free = available_bytes()
    needed = int(_SESSIONS * _SESSION_FACTOR * weights)
    if free is not None and needed > free:
        reason = f"two sessions need about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
        return unmeasured_row(reason)
    feeds = {**case.feeds, **further_feeds(manifest, records[1].mode, len(case.mask))}
    with (
        OrtRunner(resolve_inside(export_dir, records[0].onnx)) as base,
        OrtRunner(resolve_inside(export_dir, records[1].onnx)) as merged,
    ):
        base_ms, merged_ms = measure_pair(
            lambda: base.run(case.feeds), lambda: merged.run(feeds), rounds=rounds, seed=seed
        )
    timed = latency_row(base_ms, merged_ms, max_ratio=max_ratio, seed=seed)
    return LatencyRow(
        **timed, batch=len(case.mask), length=case.mask.shape[1], runner="onnxruntime, CPU"
    )
