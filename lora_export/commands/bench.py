"""``bench``: the graphs of an export timed side by side, and the gate on their ratios.

exports opened → subjects chosen → every cell interleaved → ratios judged → report written
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.commands.arguments import as_path, as_specs
from lora_export.commands.export_base import config_of, matching_checkpoint
from lora_export.commands.resolved_adapters import find_adapters
from lora_export.core.errors import LatencyError, StorageError, UsageError
from lora_export.core.files import atomic_write_bytes, staging_folder
from lora_export.core.manifest import read_manifest
from lora_export.core.model_json import model_json
from lora_export.core.modes import BASE_GRAPH, SHARED_GRAPHS
from lora_export.core.progress import Progress, Silent
from lora_export.core.version import VERSION
from lora_export.exports.integrity_checks import require_intact
from lora_export.exports.padding import as_exported
from lora_export.exports.plan import for_task
from lora_export.graph.spec import tasks
from lora_export.latency.bench_report import BenchReport, BenchSettings
from lora_export.latency.gate import Judge, baseline_of, is_wide, read_baseline
from lora_export.latency.grid import BASELINE, Plan, TimedGraph, key_of, measure
from lora_export.latency.points import Source, grid
from lora_export.latency.subjects import RUNNERS, require_runner
from lora_export.ondevice.judge.ratios import CONFIDENCE
from lora_export.report.refresh_report import refresh_report
from lora_export.runtime.environment import describe_environment, machine_class
from lora_export.verification.export import head_labels
from lora_export.verification.record import record_bench
from lora_export.weights.pooling_source import pooling_of_export

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.core.adapter_spec import AdapterSpec
    from lora_export.core.reports.machine_report import MachineReport
    from lora_export.latency.gate import Baseline
    from lora_export.latency.points import Point
    from lora_export.ondevice.judge.timing import Float64Array

__all__ = ["DEFAULT_MAX_RATIO", "Benchmark", "bench"]

DEFAULT_MAX_RATIO: Final = 1.05
_LEAST: Final = {"--rounds": 5, "--max-rounds": 5, "--threads": 0}
"""The least value of each flag; 1 of those that are not here."""


@dataclass(frozen=True)
class Benchmark:
    """The result of a benchmark.

    Attributes:
        report: The report.
        file: Where it was written.
        baseline: The baseline that was written, with ``--update-baseline``.
    """

    report: BenchReport
    file: Path
    baseline: Path | None = None

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 0, or the gate's code; `strict` fails what could not be decided or compared."""
        gate = self.report.gate
        if gate is None or gate.verdict == "pass":
            return 0
        return LatencyError.exit_code if strict or gate.verdict == "fail" else 0


def bench(
    export: str | Path,
    *,
    graphs: Sequence[str] = (),
    runners: Sequence[str] = ("ort-cpu",),
    batches: Sequence[int] = (1,),
    lengths: Sequence[int] = (128,),
    pasts: Sequence[int] = (),
    rounds: int = 50,
    max_rounds: int = 6400,
    max_seconds: float = 600.0,
    max_ratio: float | None = None,
    against: str | Path | None = None,
    baseline: str | Path | None = None,
    update_baseline: bool = False,
    base: str | Path | None = None,
    adapters: Sequence[AdapterSpec | str | Path] = (),
    threads: int = 0,
    seed: int = 0,
    startup: bool = True,
    report: str | Path | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Time the graphs of an export, and judge them where there is a limit.

    Args:
        export: The export directory.
        graphs: Which ones; all of them by itself. The base is always among them.
        runners: Keys of `RUNNERS`.
        batches: Rows of a batch.
        lengths: New tokens of each row.
        pasts: Of decoders with a cache: positions before a single token.
        rounds: Of each cell, before it is looked at.
        max_rounds: The most of each cell whose judgement is open.
        max_seconds: No further rounds of a cell begin after so long.
        max_ratio: The limit; none without it and without a baseline, else 1.05.
        against: An export whose graphs of the same names are the baseline, timed side by side.
        baseline: A file with the ratios of earlier over the base graph.
        update_baseline: Whether `baseline` is written instead of compared.
        base: The base checkpoint, for torch.
        adapters: For torch, where adapters are now that are no longer where the manifest says:
            specs, ``"NAME=PATH"`` or paths.
        threads: Threads within an operator; 0 leaves the choice to the runtime.
        seed: Seeds inputs, order and resampling.
        startup: Whether each graph is also opened in a process of its own.
        report: Where the report goes; into the export by itself.
        progress: Told what happens.

    Raises:
        LoraExportError: See the class of the error.
    """
    export_dir, specs = Path(export), as_specs(adapters)
    against, baseline, report = as_path(against), as_path(baseline), as_path(report)
    batches, lengths, pasts = (tuple(dict.fromkeys(each)) for each in (batches, lengths, pasts))
    runners = tuple(dict.fromkeys(runners))
    _require_sense(
        {"--rounds": rounds, "--max-rounds": max_rounds, "--threads": threads},
        {"--batch": batches, "--length": lengths, "--past": pasts},
        max_seconds, max_ratio,
    )  # fmt: skip
    _require_files(report, baseline, against, update_baseline=update_baseline)
    with_torch = _require_runners(runners, base)
    tell = progress or Silent()
    source = _source(export_dir, base if with_torch else None, specs)
    other = _source(against, base if with_torch else None, ()) if against is not None else None
    chosen = _choose(source, other, graphs, runners)
    environment = describe_environment(threads)
    stored = read_baseline(baseline) if baseline is not None and not update_baseline else None
    judge = _judge(
        chosen, max_ratio, against=against, stored=stored, environment=environment, seed=seed,
        kept=update_baseline,
    )  # fmt: skip
    allowed = DEFAULT_MAX_RATIO if max_ratio is None or max_ratio == 1 else max_ratio
    kept = _over_base(chosen) if update_baseline else []

    def is_open(point: Point, times: Mapping[str, Float64Array], count: int) -> bool:
        open_still = judge is not None and judge.is_open(point, times, count)
        return open_still or is_wide(times, kept, max_ratio=allowed, seed=seed)

    plan = Plan(
        rounds=rounds,
        max_rounds=max(rounds, max_rounds) if judge is not None or kept else rounds,
        max_seconds=max_seconds,
        seed=seed,
        threads=threads,
        startup=startup,
        is_open=is_open,
    )
    points = grid(source, batches, lengths, pasts)
    subjects, cells = measure(chosen, points, plan, tell)
    found = BenchReport(
        tool=f"lora-export {VERSION}",
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        environment=environment,
        settings=BenchSettings(
            rounds=rounds, max_rounds=plan.max_rounds, seed=seed, threads=threads,
            confidence=CONFIDENCE,
        ),
        subjects=subjects,
        cells=cells,
        gate=judge.gate() if judge is not None else None,
    )  # fmt: skip
    return _write(found, export_dir, report, baseline if update_baseline else None)


def _write(
    found: BenchReport, export_dir: Path, report: Path | None, baseline: Path | None
) -> Benchmark:
    """Write the report, into the export or where `report` says, and the baseline."""
    text = model_json(found)
    if report is None:
        file = record_bench(export_dir, text)
        refresh_report(export_dir)
    else:
        file = report
        atomic_write_bytes(report, text)
    if baseline is not None:
        atomic_write_bytes(baseline, baseline_of(found, machine_class(found.environment)))
    return Benchmark(found, file, baseline)


def _require_runners(runners: Sequence[str], base: str | Path | None) -> bool:
    """Require that the runners are installed; return whether torch is one of them.

    Raises:
        MissingRuntimeError: A library, provider or device is not there.
        UsageError: There is no runner of a name, or torch has no base checkpoint to run.
    """
    for name in runners:
        require_runner(name)
    with_torch = any(RUNNERS[name].torch for name in runners)
    if with_torch and base is None:
        msg = "the torch runners need the base checkpoint"
        raise UsageError(msg, hint="Add --base BASE, or leave the torch runners out.")
    return with_torch


def _require_sense(
    counts: Mapping[str, int],
    sizes: Mapping[str, Sequence[int]],
    max_seconds: float,
    max_ratio: float | None,
) -> None:
    given = [*counts.items(), *((flag, each) for flag, many in sizes.items() for each in many)]
    for flag, value in given:
        if value < _LEAST.get(flag, 1):
            msg = f"{flag} cannot be {value}"
            raise UsageError(msg, hint=f"The least is {_LEAST.get(flag, 1)}.")
    if empty := [flag for flag in ("--batch", "--length") if not sizes[flag]]:
        msg = f"{empty[0]} is empty"
        raise UsageError(msg, hint=f"For example: {empty[0]} 1,8")
    if not max_seconds > 0:
        msg = f"--max-seconds cannot be {max_seconds}"
        raise UsageError(msg, hint="600 is ten minutes for each cell.")
    if max_ratio is not None and not 0 < max_ratio < float("inf"):
        msg = f"--max-ratio cannot be {max_ratio}"
        raise UsageError(msg, hint="1.05 allows 5 % more.")


def _require_files(
    report: Path | None, baseline: Path | None, against: Path | None, *, update_baseline: bool
) -> None:
    """Require, before anything is measured, that the files written at the end can be written."""
    for flag, path in (("--report", report), ("--baseline", baseline)):
        if path is not None and path.is_dir():
            msg = f"{flag} {str(path)!r} is a folder"
            raise UsageError(msg, hint=f"Name a file: {flag} {path / 'figures.json'}")
    if against is not None and baseline is not None:
        msg = "--against and --baseline cannot be combined"
        raise UsageError(msg, hint="Leave one of them out.")
    if update_baseline and baseline is None:
        msg = "--update-baseline needs the file to write"
        raise UsageError(msg, hint="Name it: --baseline FILE")
    for flag, path in (("--report", report), ("--baseline", baseline if update_baseline else None)):
        if path is not None:
            _require_writable(flag, path)


def _require_writable(flag: str, path: Path) -> None:
    """Require that a file can be written beside `path`, minutes before it is."""
    try:
        with staging_folder(path.parent, "file"):
            pass
    except (OSError, StorageError) as error:
        msg = f"{flag} {str(path)!r} cannot be written: {getattr(error, 'strerror', None) or error}"
        raise UsageError(msg, hint="Name a file in a folder that takes one.") from error


def _source(export_dir: Path, base: str | Path | None, specs: Sequence[AdapterSpec]) -> Source:
    """Open an export, and the checkpoint that it was made of where torch runs it."""
    manifest = read_manifest(export_dir)
    require_intact(export_dir, manifest)
    config = config_of(export_dir, None)
    if config is None:
        msg = f"{str(export_dir)!r} has no hf/config.json, which gives the limits of its inputs"
        raise UsageError(msg, hint="Export again from a base with a config.json.")
    checkpoint = matching_checkpoint(manifest, base)
    if checkpoint is None:
        return Source(export_dir, manifest, config)
    task = tasks.by_name(manifest.base.task)
    checkpoint = as_exported(checkpoint, export_dir)
    checkpoint = for_task(checkpoint, task, pooling_of_export(export_dir, checkpoint.folder))
    adapters = find_adapters(export_dir, manifest, specs, checkpoint.config)
    return Source(export_dir, manifest, config, checkpoint, adapters, head_labels(manifest))


def _choose(
    source: Source, other: Source | None, graphs: Sequence[str], runners: Sequence[str]
) -> list[TimedGraph]:
    """Return the subjects to time; the base first, each runner's subjects together."""
    known = source.graphs()
    if unknown := [name for name in graphs if name not in known]:
        msg = f"{str(source.export_dir)!r} has no graph {unknown[0]!r}"
        raise UsageError(msg, hint=f"It has: {', '.join(known)}.")
    wanted = [name for name in known if name in {BASE_GRAPH, *(graphs or known)}]
    found = [
        TimedGraph(source, name, runner)
        for runner in runners
        for name in wanted
        if _is_run(source, name, runner)
    ]
    if other is None:
        return found
    theirs = set(other.graphs())
    both = [TimedGraph(other, each.graph, each.runner, baseline=True)
            for each in found if each.graph in theirs]  # fmt: skip
    if not both or (graphs and not set(graphs) <= theirs):
        missing = next(iter(set(graphs) - theirs), "of the same names")
        msg = f"the baseline {str(other.export_dir)!r} has no graph {missing!r}"
        raise UsageError(msg, hint=f"It has: {', '.join(other.graphs())}.")
    return found + both


def _is_run(source: Source, graph: str, runner: str) -> bool:
    """Whether a runner runs a graph: torch none of several adapters, an engine no lacking base.

    A base without a head, which only adapters bring, has no engine.
    """
    row = RUNNERS[runner]
    if row.torch:
        return graph not in SHARED_GRAPHS
    return row.engine is None or graph != BASE_GRAPH or not source.manifest.base_graph.missing


def _over_base(chosen: Sequence[TimedGraph]) -> list[tuple[str, str]]:
    """Return each subject with the base graph of its runner, where that is timed too."""
    keys = {each.key for each in chosen}
    pairs = [
        (each.key, key_of(each.runner, BASE_GRAPH))
        for each in chosen
        if each.graph != BASE_GRAPH and not each.baseline
    ]
    return [(key, base) for key, base in pairs if base in keys]


def _judge(
    chosen: Sequence[TimedGraph],
    max_ratio: float | None,
    *,
    against: Path | None,
    stored: Baseline | None,
    environment: MachineReport,
    seed: int,
    kept: bool,
) -> Judge | None:
    """Return the judge of the ratios; None where there is no limit."""
    own = [each for each in chosen if not each.baseline]
    keys = {each.key for each in chosen}
    over_base = _over_base(chosen)
    limit = DEFAULT_MAX_RATIO if max_ratio is None else max_ratio
    wanted = kept or stored is not None or max_ratio is not None
    if not over_base and against is None and wanted:
        there = any(each.graph == BASE_GRAPH for each in own)
        alone = "the base graph is alone" if there else "the base has no engine"
        msg = f"there is nothing to {'keep' if kept else 'judge'}: {alone}"
        raise UsageError(msg, hint="Compare it with another export's: --against BASELINE_OUT")
    if against is not None:
        pairs = [(each.key, each.key + BASELINE) for each in own if each.key + BASELINE in keys]
        lacking = [each.key for each in own if each.key + BASELINE not in keys]
        return Judge(limit, pairs, against=str(against), lacking=lacking, seed=seed)
    if stored is not None:
        unlike = stored.difference(machine_class(environment))
        return Judge(
            limit, over_base, against="the baseline's ratios over the base graph",
            stored=stored, unlike=unlike, seed=seed,
        )  # fmt: skip
    if max_ratio is None:
        return None
    return Judge(limit, over_base, against="the base graph", seed=seed)
