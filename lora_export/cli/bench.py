"""``bench``: the command, and its report as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import (
    SEED,
    adapter_keys,
    adapter_options,
    base_option,
    common_options,
    parse_adapter,
)
from lora_export.cli.text import aligned, first_few, size
from lora_export.core.errors import UsageError

if TYPE_CHECKING:
    from lora_export.commands.bench import Benchmark
    from lora_export.latency.bench_report import BenchReport, Cell, Gate

__all__ = ["bench", "render"]

_REASONS: Final = 8


@click.command(
    "bench",
    cls=Command,
    examples="""
lora-export bench out --batch 1,8 --length 32,128

# Fail with exit code 6 if an adapter is more than 5 % slower than the base
lora-export bench out --max-ratio 1.05
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@base_option("The base checkpoint, for torch runners.")
@option("--adapter", "adapters", section="Adapters", multiple=True, metavar="NAME=PATH",
        help="For torch runners: the place of an adapter that has moved.")  # fmt: skip
@adapter_options
@option("--graph", "graphs", section="Measurement", multiple=True, metavar="NAME",
        help="A graph to time beside the base.", default_text="all")  # fmt: skip
@option("--runner", "runners", section="Measurement", multiple=True, metavar="RUNNER",
        default=("ort-cpu",),
        help="ort-cpu, ort-cuda, ort-tensorrt, tensorrt or rtx (engines of `build`), torch, "
             "torch-compile, torch-cuda or torch-cuda-compile.")  # fmt: skip
@option("--batch", "batches", section="Measurement", metavar="N,…", default="1",
        help="Batch sizes.")  # fmt: skip
@option("--length", "lengths", section="Measurement", metavar="N,…", default="128",
        help="Lengths of the input in tokens; for decoders, of the prompt.")  # fmt: skip
@option("--past", "pasts", section="Measurement", metavar="N,…", default="",
        help="Decoders: also time one token after this many cached ones.")  # fmt: skip
@option("--rounds", section="Measurement", type=int, default=50,
        help="Rounds for each batch size and length.")  # fmt: skip
@option("--max-rounds", section="Measurement", type=int, default=6400,
        help="The most rounds if the gate is still undecided.")  # fmt: skip
@option("--max-seconds", section="Measurement", type=float, default=600.0,
        help="The most seconds for each batch size and length.")  # fmt: skip
@option("--threads", section="Measurement", type=int, default=0,
        help="Threads within an operator; 0 for the runtime's choice.")  # fmt: skip
@option("--seed", section="Measurement", type=SEED, default=0,
        help="The seed of inputs and order.")  # fmt: skip
@option("--no-startup", section="Measurement", is_flag=True,
        help="Do not measure start-up time and peak memory.")  # fmt: skip
@option("--max-ratio", section="Gate", type=float, metavar="RATIO",
        help="The largest ratio to the baseline, or to the base graph.")  # fmt: skip
@option("--against", section="Gate", type=click.Path(path_type=Path), metavar="EXPORT",
        help="The baseline: an export whose graphs run side by side with these.")  # fmt: skip
@option("--baseline", section="Gate", type=click.Path(path_type=Path), metavar="FILE",
        help="The baseline: ratios to the base graph, measured earlier.")  # fmt: skip
@option("--update-baseline", section="Gate", is_flag=True, help="Write --baseline instead.")
@option("--strict", section="Gate", is_flag=True,
        help="Fail if a limit is undecided or could not be judged.")  # fmt: skip
@option("--report", section="Output", type=click.Path(path_type=Path), metavar="FILE",
        help="The report.", default_text="EXPORT/reports/bench.json")  # fmt: skip
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
    """Time the graphs of an export side by side.

    Every graph runs once a round, in random order; ratios are within the same round, with a
    bootstrap interval. With --max-ratio, rounds are added until the interval is on one side
    of the limit; the exit code is 6 if it is above.
    """
    from lora_export.commands.bench import bench as bench_export
    from lora_export.commands.recipe import make_specs

    reading = adapter_keys(adapter_format, alpha, enable_lora, subfolder)
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
        msg = f"{flag} {text!r} has {wrong!r}, which is not a number"
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
