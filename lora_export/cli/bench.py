"""``bench``: the command, and its report as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.console import (
    SEED,
    Console,
    adapter_options,
    common_options,
    of_adapters,
    parse_adapter,
)
from lora_export.cli.text import aligned, first_few, size
from lora_export.core.errors import UsageError

if TYPE_CHECKING:
    from lora_export.commands.bench import Benchmark
    from lora_export.latency.bench_report import BenchReport, Cell, Gate

__all__ = ["bench", "render"]

_REASONS: Final = 8


@click.command("bench")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--graph", "graphs", multiple=True, metavar="NAME",
              help="A graph to time beside the base; repeatable. All by itself.")  # fmt: skip
@click.option("--runner", "runners", multiple=True, metavar="RUNNER", default=("ort-cpu",),
              help="ort-cpu (by itself), ort-cuda, ort-tensorrt; tensorrt, rtx (engines of build); "
                   "torch, torch-compile, torch-cuda, torch-cuda-compile; repeatable.")  # fmt: skip
@click.option("--batch", "batches", metavar="N,…", default="1", show_default=True,
              help="Rows of a batch.")  # fmt: skip
@click.option("--length", "lengths", metavar="N,…", default="128", show_default=True,
              help="New tokens of each row; of a decoder: before its first token.")  # fmt: skip
@click.option("--past", "pasts", metavar="N,…", default="",
              help="Decoders: time one token after so many others, too.")  # fmt: skip
@click.option("--rounds", type=int, default=50, show_default=True, help="Runs of each cell.")
@click.option("--max-rounds", type=int, default=6400, show_default=True,
              help="The most of a cell whose judgement is open.")  # fmt: skip
@click.option("--max-seconds", type=float, default=600.0, show_default=True,
              help="No further runs of a cell begin after so long.")  # fmt: skip
@click.option("--max-ratio", type=float, metavar="RATIO",
              help="The gate: the largest ratio over baseline or base graph.")  # fmt: skip
@click.option("--against", type=click.Path(path_type=Path), metavar="EXPORT",
              help="The baseline: an export whose graphs run side by side with these.")  # fmt: skip
@click.option("--baseline", type=click.Path(path_type=Path), metavar="FILE",
              help="The baseline: ratios of earlier over the base graph.")  # fmt: skip
@click.option("--update-baseline", is_flag=True, help="Write --baseline instead.")
@click.option("--base", metavar="PATH_OR_ID", help="The base checkpoint, for torch.")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=PATH",
              help="For torch: where an adapter is now, if it has moved; repeatable.")  # fmt: skip
@click.option("--threads", type=int, default=0, help="Within an operator; the runtime's choice.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seeds inputs and order.")
@click.option("--no-startup", is_flag=True, help="Leave start-up and peak memory out.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE",
              help="Where the report goes; EXPORT/reports/bench.json by itself.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Treat an open or missing judgement as a failure.")
@adapter_options
@common_options
def bench(
    *,
    export: Path,
    adapters: tuple[str, ...],
    batches: str,
    lengths: str,
    pasts: str,
    no_startup: bool,
    strict: bool,
    adapter_format: str | None,
    alpha: float | None,
    enable_lora: str | None,
    subfolder: str | None,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """Time the graphs of EXPORT side by side, and judge them.

    Every subject runs once a round, in random order; ratios are of the same round, with a bootstrap
    interval. With a limit, a cell is measured until it is decided: exit code 6 where the interval
    lies above the limit.
    """
    from lora_export.commands.bench import bench as bench_export
    from lora_export.commands.recipe import make_specs

    reading = of_adapters(adapter_format, alpha, enable_lora, subfolder)
    rows = [{**parse_adapter(text), **reading} for text in adapters]
    with Console(as_json=as_json, quiet=quiet) as console:
        found = bench_export(
            export,
            batches=_numbers("--batch", batches),
            lengths=_numbers("--length", lengths),
            pasts=_numbers("--past", pasts),
            adapters=make_specs(rows, {}),
            startup=not no_startup,
            progress=console,
            **settings,
        )
        console.finish(found.report.model_dump(mode="json"), render(found))
    return found.exit_code(strict=strict)


def _numbers(flag: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None:
        msg = f"{flag} {text!r} has {wrong!r}, which is no number"
        raise UsageError(msg, hint=f"For example: {flag} 1,8,32")
    return [int(word) for word in words]


def render(found: Benchmark) -> list[str]:
    """Return the report as tables: start-up, times of each cell, judgement."""
    report = found.report
    lines = [_machine(report), *_startups(report)]
    for cell in report.cells:
        lines += ["", f"{cell.name}, {cell.rounds} rounds", *_cell(cell)]
    if report.gate is not None:
        lines += ["", *_gate(report.gate)]
    lines += ["", f"report: {found.file}"]
    if found.baseline is not None:
        lines.append(f"baseline written: {found.baseline}")
    return lines


def _machine(report: BenchReport) -> str:
    environment = report.environment
    cpu = environment.cpu
    parts = [f"{cpu.model or cpu.architecture}, {cpu.usable} processors usable"]
    parts += [gpu.name for gpu in environment.gpus]
    load = environment.load_average[0]
    return f"{'; '.join(parts)}; load average {load}"


def _startups(report: BenchReport) -> list[str]:
    rows = [("start-up", "session ms", "first run ms", "peak memory")]
    for key, subject in report.subjects.items():
        if (each := subject.startup) is not None:
            peak = "unknown" if each.peak_bytes is None else size(each.peak_bytes)
            rows.append((key, f"{each.session_ms:.1f}", f"{each.first_run_ms:.1f}", peak))
    return ["", *aligned(rows)] if len(rows) > 1 else []


def _cell(cell: Cell) -> list[str]:
    energy = any(row.energy_mj is not None for row in cell.times.values())
    rows = [
        ("", "median ms", "p90", "p99", "rows/s", *(["mJ"] if energy else []), "ratio"),
    ]
    for key, row in cell.times.items():
        ratios = [
            f"{each.ratio:.3f} [{each.interval[0]:.3f}, {each.interval[1]:.3f}] over {each.over}"
            for each in cell.ratios
            if each.subject == key
        ]
        spent = ["–" if row.energy_mj is None else f"{row.energy_mj:.1f}"] if energy else []
        rows.append(
            (
                key,
                *(f"{each:.3f}" for each in (row.median_ms, row.p90_ms, row.p99_ms)),
                f"{row.per_second:.1f}",
                *spent,
                "; ".join(ratios),
            )
        )
    unsettled = [key for key, row in cell.times.items() if not row.stable]
    notes = [f"  not settled when measured: {', '.join(unsettled)}"] if unsettled else []
    return [*aligned(rows), *notes]


def _gate(gate: Gate) -> list[str]:
    counts = {
        verdict: sum(row.verdict == verdict for row in gate.rows)
        for verdict in ("fail", "ambiguous", "unverified", "pass")
    }
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    head = f"gate: {gate.verdict}: ratios over {gate.against}, limit {gate.max_ratio}: {told}"
    reasons = [
        f"  {row.verdict}: {row.cell}, {row.subject}: {row.reason}"
        for row in sorted(gate.rows, key=lambda row: row.verdict != "fail")
        if row.verdict != "pass"
    ]
    return [head, *first_few(reasons, _REASONS)]
