"""``preflight``: the command, and its report as text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import common_options
from lora_export.cli.terminal import say
from lora_export.cli.text import aligned, first_few, size
from lora_export.cli.words import DEVICE
from lora_export.core.errors import UnsupportedError
from lora_export.ondevice.printable import (
    CELL_LIMIT,
    HINT_LIMIT,
    LINE_LIMIT,
    FinishedLine,
    printable,
)
from lora_export.ondevice.trt.libraries import library_title

if TYPE_CHECKING:
    from lora_export.engines.findings import Finding
    from lora_export.engines.preflight import GraphReport, Preflight

__all__ = ["preflight"]

_SHOWN_NODES: Final = 3
_STYLES: Final = {"error": "bold red", "warning": "yellow", "note": "dim"}


@click.command(
    "preflight",
    cls=Command,
    examples="""
lora-export preflight out --target jetson-orin
lora-export preflight out --target rtx --strict
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@option("--target", section="Input", required=True, type=DEVICE,
        help="The device that will run the engines.")  # fmt: skip
@option("--graph", "graphs", section="Input", multiple=True, metavar="NAME",
        help="A graph of the export.", default_text="all")  # fmt: skip
@option("--builder", section="Engine", type=click.Choice(["tensorrt", "tensorrt-rtx"]),
        metavar="LIBRARY", help="The library that will build.",
        default_text="tensorrt-rtx for --target rtx, else tensorrt")  # fmt: skip
@option("--tensorrt", section="Engine", metavar="VERSION", help="The version of that library.",
        default_text="the oldest of the target")  # fmt: skip
@option("--profile", "profiles", section="Engine", multiple=True, metavar="AXIS=MIN:OPT:MAX,…",
        help="Sizes of the dynamic axes: one optimization profile.")  # fmt: skip
@option("--memory", "memory_gib", section="Engine", metavar="GIB",
        type=click.FloatRange(min=0, min_open=True),
        help="The memory of the device, if the target has several sizes.")  # fmt: skip
@option("--parser", section="Engine", is_flag=True,
        help="Also parse the graphs with the installed library.")  # fmt: skip
@option("--strict", section="Gate", is_flag=True, help="Treat a warning as an error.")
@common_options
def preflight(
    *,
    export: Path,
    target: str,
    builder: str | None,
    parser: bool,
    graphs: tuple[str, ...],
    tensorrt: str | None,
    profiles: tuple[str, ...],
    memory_gib: float | None,
    strict: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Predict whether TensorRT can build engines of an export, without TensorRT and a GPU.

    With --parser, the parser of the installed library checks each graph too. The exit code
    is 0 if no obstacle is known, and 4 if there is one.
    """
    from lora_export.engines.preflight import preflight as check
    from lora_export.engines.profiles import parse_profile

    with Console(as_json=as_json, quiet=quiet) as console:
        report = check(
            export,
            target,
            graphs=graphs,
            tensorrt=tensorrt,
            profiles=[parse_profile(text) for text in profiles],
            memory_gib=memory_gib,
            builder=builder,
            parser=parser,
        )
        console.finish(_document(report, strict=strict), _lines(report))
    refusal = _refusal(report, strict=strict)
    if refusal is None:
        return 0
    say(f"error: {refusal.message}", *filter(None, [refusal.hint]), limit=HINT_LIMIT)
    return refusal.exit_code


def _blocking(report: Preflight, *, strict: bool) -> list[tuple[str, Finding]]:
    found = report.of_severity("error")
    return [*found, *report.of_severity("warning")] if strict else found


def _refusal(report: Preflight, *, strict: bool) -> UnsupportedError | None:
    """Return the first of what prevents an engine as an error; None where nothing does."""
    found = _blocking(report, strict=strict)
    if not found:
        return None
    file, first = found[0]
    where = f"{file}: " if file else ""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    msg = f"{_asked(report)}: {where}{first.subject}: {first.message}"
    return UnsupportedError(msg + more, hint=first.hint or "See the report.")


def _asked(report: Preflight) -> str:
    """Return which library was asked about, and where it is to run."""
    return f"{library_title(report.library)} {report.tensorrt} on {report.target}"


def _document(report: Preflight, *, strict: bool) -> dict[str, Any]:
    document = asdict(report)
    for row, graph in zip(document["graphs"], report.graphs, strict=True):
        low, high = graph.memory.build_bytes
        row["memory"] |= {"run_bytes": graph.memory.run_bytes, "build_bytes": [low, high]}
    return {"buildable": not _blocking(report, strict=strict), **document}


def _lines(report: Preflight) -> list[str]:
    """Return the report; files with the same findings and sizes stand together."""
    alike: dict[tuple[object, ...], list[GraphReport]] = {}
    for graph in report.graphs:
        alike.setdefault((graph.opset, graph.findings, graph.memory), []).append(graph)
    errors, warnings = (len(report.of_severity(which)) for which in ("error", "warning"))
    verdict = "cannot be built" if errors else "can be built, as far as is known without TensorRT"
    if report.parser and not errors:
        verdict = f"can be built, as far as the parser of {report.parser} says"
    lines = [f"{_asked(report)}: {verdict}"]
    lines += [f"  {found.subject}: {found.message}" for found in report.findings]
    for graphs in alike.values():
        lines += ["", *_graph_lines(graphs)]
    if warnings:
        lines += ["", f"{warnings} warning{'s' if warnings > 1 else ''} (--strict refuses them)"]
    return lines


def _graph_lines(graphs: list[GraphReport]) -> list[str]:
    first = graphs[0]
    nodes = sum(first.operators.values())
    rows = [
        ("nodes", f"{nodes:,} of {len(first.operators)} operators, opset {first.opset}"),
        *_memory_rows(first),
    ]
    files = ", ".join(first_few([graph.file for graph in graphs]))
    return [files, *aligned(rows), *_table(first.findings)]


def _memory_rows(graph: GraphReport) -> list[tuple[str, str]]:
    memory = graph.memory
    if memory.activations_bytes is None:
        return [("memory", f"weights {size(memory.weights_bytes)}; more depends on the shapes")]
    low, high = memory.build_bytes
    about = f"at least ({memory.unknown} values have no known shape)" if memory.unknown else "about"
    parts = f"weights {size(memory.weights_bytes)}, "
    parts += f"inputs and outputs {size(memory.io_bytes or 0)}"
    if memory.cache_bytes:
        parts += f" (the cache's {size(memory.cache_bytes)})"
    parts += f", in between {size(memory.activations_bytes)}"
    return [
        ("to run", f"{about} {size(memory.run_bytes)}: {parts}"),
        ("to build", f"{about.partition(' (')[0]} {size(low)} to {size(high)}"),
    ]


def _table(findings: tuple[Finding, ...]) -> list[str]:
    """Return the findings as a table, as wide as the terminal."""
    if not findings:
        return []
    import io

    from rich import box
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("", "what", "finding, and what to do"):
        table.add_column(name, overflow="fold")
    for found in findings:
        shown = () if found.severity == "note" else found.where
        where = ", ".join(first_few(list(shown), _SHOWN_NODES))
        lines = [f"{found.message}.", found.hint, f"At {where}." if where else ""]
        table.add_row(
            Text(found.severity, style=_STYLES[found.severity]),
            Text(printable(found.subject, CELL_LIMIT)),
            Text("\n".join(printable(line, LINE_LIMIT) for line in lines if line)),
        )
    out = RichConsole()
    stream = io.StringIO()
    RichConsole(
        file=stream,
        width=out.width,
        force_terminal=out.is_terminal,
        color_system="standard" if out.is_terminal else None,
        no_color=out.no_color,
    ).print(table)
    return [FinishedLine(line.rstrip()) for line in stream.getvalue().rstrip().splitlines()]
