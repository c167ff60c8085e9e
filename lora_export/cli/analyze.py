"""``analyze``: the command, and its reports as text."""

from __future__ import annotations

import re
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from lora_export.cli.closing import next_line
from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import (
    adapter_keys,
    adapter_options,
    base_option,
    common_options,
    out_option,
)
from lora_export.cli.text import aligned, first_few, size
from lora_export.cli.words import DTYPE
from lora_export.core.errors import UsageError
from lora_export.ondevice.printable import shell_command

if TYPE_CHECKING:
    from lora_export.commands.analyze.analysis import Analysis, Compression, ModuleRow
    from lora_export.commands.analyze.cost import Cost

__all__ = ["analyze"]


@click.command(
    "analyze",
    cls=Command,
    examples="""
lora-export analyze ./adapter
lora-export analyze ./adapter ./other --figure similarity.svg
lora-export analyze ./adapter --compress 99% -o ./smaller

# The cost of an adapter that is not trained yet
lora-export analyze --plan ./base --target q_proj --target v_proj --rank 16
""",
)
@argument("adapter", "The adapter.", required=False)
@argument("other", "Another adapter, to compare subspaces.", required=False)
@base_option("The base checkpoint: show how much each update amplifies what W does "
             "(table 7 of the LoRA paper).")  # fmt: skip
@option("--plan", section="Planning", metavar="BASE",
        help="Show what an adapter for this model would cost, from its config.")  # fmt: skip
@option("--target", "targets", section="Planning", multiple=True, metavar="MODULE",
        help="With --plan: a module to adapt, as in PEFT's target_modules.")  # fmt: skip
@option("--rank", section="Planning", type=click.IntRange(1, 1 << 20), default=8,
        help="With --plan: the rank.")  # fmt: skip
@option("--dtype", "--precision", "dtype", section="Planning", type=DTYPE, default="float16",
        help="With --plan: the dtype of the weights.")  # fmt: skip
@adapter_options
@option("--compress", "cut", section="Output", metavar="RANK|SHARE%",
        help="Write a smaller adapter: of this rank, or with this share of the "
             "energy.")  # fmt: skip
@out_option("With --compress: the new directory.", type=click.Path(path_type=Path),
            metavar="DIR")  # fmt: skip
@option("--figure", section="Output", type=click.Path(path_type=Path), metavar="FILE.svg",
        help="With OTHER: draw the subspace similarity of one module.")  # fmt: skip
@option("--module", section="Output", metavar="NAME", help="With --figure: the module.",
        default_text="the first")  # fmt: skip
@common_options
def analyze(
    *,
    adapter: str | None,
    other: str | None,
    base: str | None,
    figure: Path | None,
    module: str | None,
    cut: str | None,
    output: Path | None,
    plan: str | None,
    targets: tuple[str, ...],
    rank: int,
    dtype: str,
    adapter_format: str | None,
    alpha: float | None,
    enable_lora: str | None,
    subfolder: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Analyze an adapter as section 7 of the LoRA paper does.

    Shows singular values and effective ranks; with OTHER, how much the subspaces of the two
    overlap; with --base, what W does in the directions that the adapter amplifies.
    """
    reading = adapter_keys(adapter_format, alpha, enable_lora)
    with Console(as_json=as_json, quiet=quiet) as console:
        if plan is not None:
            _refuse(adapter is not None, "--plan needs no adapter")
            cost = _cost(plan, targets, rank, dtype, console)
            console.finish({**asdict(cost), "reduction": cost.reduction}, _cost_lines(cost))
            return 0
        if adapter is None:
            msg = "there is nothing to analyze"
            raise UsageError(msg, hint="Name an adapter, or a model: --plan BASE --target q_proj")
        _refuse(bool(targets), "--target belongs to --plan")
        _refuse(figure is not None and other is None, "--figure compares two adapters")
        _refuse(module is not None and figure is None, "--module belongs to --figure")
        _require_compression(cut, output, adapter, {"a second adapter": other, "--base": base})
        from lora_export.core.hub import local_path

        if cut is not None and output is not None:
            done = _compress(local_path(adapter, subfolder=subfolder), output, cut, reading)
            console.finish(asdict(done), _compression_lines(done))
            return 0
        from lora_export.commands.analyze.analysis import analyze as analyse

        report = analyse(
            local_path(adapter, subfolder=subfolder),
            other=local_path(other) if other is not None else None,
            base=local_path(base) if base is not None else None,
            reading=reading,
            progress=console,
        )
        if figure is not None:
            _draw(report, module, figure)
        console.finish(_document(report), _lines(report))
    return 0


def _refuse(wrong: bool, message: str) -> None:  # noqa: FBT001  (a guard)
    if wrong:
        raise UsageError(message, hint="See: lora-export analyze --help")


def _require_compression(
    cut: str | None, out: Path | None, adapter: str, others: dict[str, str | None]
) -> None:
    """Require that ``--compress`` says where it writes, and is given what it has a use for."""
    if cut is None and out is not None:
        msg = "--out needs --compress; the analysis itself is printed, not saved"
        raise UsageError(msg, hint="Add --compress RANK, or save the analysis: --json > FILE")
    if cut is None:
        return
    where = shell_command(["--out", out or f"{Path(adapter).name}-small"])
    if useless := next((each for each, given in others.items() if given is not None), None):
        msg = f"--compress takes one adapter and not {useless}: nothing was saved"
        command = shell_command(["lora-export", "analyze", adapter, "--compress", cut])
        raise UsageError(msg, hint=f"Write: {command} {where}")
    if out is None:
        msg = "--compress needs --out, the directory of the smaller adapter: nothing was saved"
        raise UsageError(msg, hint=f"Name a new folder: {where}")


def _cost(plan: str, targets: tuple[str, ...], rank: int, dtype: str, console: Console) -> Cost:
    from lora_export.commands.analyze.cost import cost_of
    from lora_export.core.dtypes import by_name
    from lora_export.core.hub import local_path
    from lora_export.core.targets import DEFAULT_TARGET
    from lora_export.core.targets import by_name as target_of
    from lora_export.graph.graph_export import export_graph
    from lora_export.graph.spec import tasks
    from lora_export.weights.checkpoint import read_config

    if not targets:
        msg = "--plan needs the modules to adapt"
        raise UsageError(msg, hint="Name them: --target q_proj --target v_proj")
    path = local_path(plan)
    config = read_config(path.parent if path.name == "config.json" else path)
    task = tasks.detect(config)
    console.start("counting the parameters of the model")
    template = export_graph(
        config, task, dtype=by_name(dtype).name, opset=target_of(DEFAULT_TARGET).opset,
        labels_count=None,
    )  # fmt: skip
    return cost_of(template.parameters, targets, rank=rank, dtype=dtype)


def _cost_lines(cost: Cost) -> list[str]:
    rows = [
        ("base", f"{cost.base_parameters:,} parameters, {size(cost.base_bytes)} in {cost.dtype}"),
        ("adapter", f"{cost.trained_parameters:,} parameters, {size(cost.adapter_bytes)}"),
        ("modules", f"{cost.modules} of rank {cost.rank}"),
        ("reduction", f"{cost.reduction:,.0f} times fewer parameters to train and to store"),
    ]
    return aligned(rows, indent=0)


def _compress(adapter: Path, out: Path, cut: str, reading: dict[str, Any]) -> Compression:
    from lora_export.commands.analyze.analysis import compress_to
    from lora_export.commands.analyze.compress import Cut

    share = re.fullmatch(r"(\d+(?:\.\d+)?)%", cut.strip())
    if share is not None:
        how = Cut(energy=float(share[1]) / 100)
    elif cut.strip().isdecimal():
        how = Cut(rank=int(cut))
    else:
        msg = f"--compress {cut!r} is neither a rank nor a share in percent"
        raise UsageError(msg, hint="Write --compress 4, or --compress 99%.")
    return compress_to(adapter, out, how, reading=reading)


def _compression_lines(done: Compression) -> list[str]:
    worst = max(done.modules, key=lambda row: row.relative_error)
    ranks = sorted({row.rank for row in done.modules})
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    sizes = f"{size(done.bytes_before)} became {size(done.bytes_after)}"
    loss = f"{worst.relative_error:.2e} of the update of {worst.module}"
    return [
        f"{done.output}: {sizes}, ranks {shown}",
        f"  worst loss: {loss}",
        next_line(["lora-export", "inspect", done.output]),
    ]


def _draw(report: Analysis, module: str | None, figure: Path) -> None:
    from lora_export.commands.analyze.heatmap import heatmap
    from lora_export.core.files import atomic_write_bytes

    rows = [row for row in report.modules if row.similarity is not None]
    chosen = rows[0] if module is None else next((r for r in rows if r.module == module), None)
    if chosen is None or chosen.similarity is None:
        msg = f"{module!r} is not a module of both adapters"
        raise UsageError(msg, hint=f"They share: {', '.join(first_few([r.module for r in rows]))}.")
    panels = [(f"φ of {name}", table) for name, table in chosen.similarity.items()]
    title = f"{chosen.module}: subspaces of {report.source} (i) and {report.other} (j)"
    atomic_write_bytes(figure, heatmap(title, panels).encode())


def _document(report: Analysis) -> dict[str, Any]:
    document = asdict(report)
    for row, written in zip(report.modules, document["modules"], strict=True):
        if row.similarity is not None:
            written["similarity"] = {name: each.tolist() for name, each in row.similarity.items()}
        if row.amplification is not None:
            factor = row.amplification.factor
            written["amplification"]["factor"] = factor if isfinite(factor) else None
    return document


def _lines(report: Analysis) -> list[str]:
    groups: dict[str, list[ModuleRow]] = {}
    for row in report.modules:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", row.module), []).append(row)
    header = ["module", "count", "rank", "‖ΔW‖", "effective rank", "90 % in", "99 % in"]
    if report.base:
        header += ["‖UᵀWV‖", "random", "W's own", "amplified"]
    if report.other:
        header += ["φ(1, 1) of A", "φ(r, r) of A"]
    table = [header, *(_group_row(name, rows, report) for name, rows in groups.items())]
    lines = [f"adapter {report.source}", *aligned(table)]
    if report.magnitudes:
        lines.append("  DoRA: the updates are those before rows are scaled to their magnitudes")
    for source, modules in ((report.other, report.only_here), (report.source, report.only_there)):
        if modules:
            lines.append(f"  not in {source}: {', '.join(first_few(list(modules)))}")
    lines.append("  medians over each group; every module with --json")
    return lines


def _group_row(name: str, rows: list[ModuleRow], report: Analysis) -> list[str]:
    ranks = sorted({row.rank for row in rows})
    cells = [
        name,
        str(len(rows)),
        str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}",
        f"{median(row.norm for row in rows):.3g}",
        f"{median(row.effective_rank for row in rows):.2f}",
        f"{median(row.rank_90 for row in rows):g}",
        f"{median(row.rank_99 for row in rows):g}",
    ]
    if report.base:
        found = [row.amplification for row in rows if row.amplification is not None]
        cells += [
            f"{median(each.in_delta for each in found):.3g}",
            f"{median(each.in_random for each in found):.3g}",
            f"{median(each.in_weight for each in found):.3g}",
            f"{median(each.factor for each in found):.3g}",
        ]
    if report.other:
        tables = [row.similarity["A"] for row in rows if row.similarity is not None]
        cells += (
            [f"{median(float(t[at, at]) for t in tables):.3f}" for at in (0, -1)]
            if tables
            else ["-", "-"]
        )
    return cells
