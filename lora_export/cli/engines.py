"""``build`` and ``refit``: the commands for TensorRT engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.closing import next_line
from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import common_options, parse_adapter
from lora_export.cli.text import aligned, size
from lora_export.cli.words import DEVICE, PRECISION
from lora_export.ondevice.printable import FinishedLine, shell_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.engines.engine_build import PlannedEngine
    from lora_export.ondevice.trt.build_settings import BuildSettings
    from lora_export.ondevice.trt.record_table import BuildRecord

__all__ = ["build", "refit"]

_MEBIBYTE: Final = 1 << 20


@click.command(
    "build",
    cls=Command,
    examples="""
# On the device
lora-export build out --target auto

# On any machine, for all RTX GPUs
lora-export build out --target rtx

# What would be built
lora-export build out --target jetson-orin --dry-run
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@option("--target", section="Input", required=True, type=DEVICE,
        help="The device: auto for this one, rtx for any GPU from Ampere on.")  # fmt: skip
@option("--graph", "graphs", section="Input", multiple=True, metavar="NAME",
        help="A graph of the export.", default_text="those that serve adapters")  # fmt: skip
@option("--recipe", section="Input", type=click.Path(path_type=Path), metavar="FILE",
        help="A recipe with profiles.")  # fmt: skip
@option("--builder", section="Engine", type=click.Choice(["tensorrt", "tensorrt-rtx"]),
        metavar="LIBRARY", help="The library that builds; tensorrt-rtx needs no GPU.",
        default_text="tensorrt-rtx for --target rtx, else tensorrt")  # fmt: skip
@option("--profile", "profiles", section="Engine", multiple=True, metavar="AXIS=MIN:OPT:MAX,…",
        help="Sizes of the dynamic axes: one optimization profile.")  # fmt: skip
@option("--precision", "--dtype", "precision", section="Engine", type=PRECISION,
        help="The dtype that the export must have.", default_text="any")  # fmt: skip
@option("--compute-capability", "capabilities", section="Engine", metavar="8.6,8.9,…",
        help="tensorrt-rtx: the GPUs that the engine is for.",
        default_text="8.0 and later")  # fmt: skip
@option("--workspace", section="Engine", type=click.IntRange(min=1), metavar="MIB",
        help="The most memory that layers may use.", default_text="all")  # fmt: skip
@option("--optimization-level", section="Engine", type=click.IntRange(0, 5), metavar="0…5",
        help="How long TensorRT searches for kernels.",
        default_text="TensorRT's own, 3")  # fmt: skip
@option("--tf32", section="Engine", is_flag=True,
        help="Allow TF32 in float32 matrix products.")  # fmt: skip
@option("--version-compatible", section="Engine", is_flag=True,
        help="Build an engine that later versions of TensorRT load too.")  # fmt: skip
@option("--hardware-compatible", section="Engine", metavar="LEVEL", default="none",
        help="Build an engine for other GPUs too: ampere+ or "
             "same-compute-capability.")  # fmt: skip
@option("--strip-weights", section="Engine", is_flag=True,
        help="Build an engine without weights; they are read from the files of the "
             "graph.")  # fmt: skip
@option("--refit", "refittable", section="Engine", is_flag=True,
        help="Build an engine whose adapted weights `refit` can replace.")  # fmt: skip
@option("--trtexec", section="Engine", is_flag=True, help="Build with the tool trtexec.")
@option("--dry-run", section="Output", is_flag=True,
        help="Print what would be built; needs no TensorRT.")  # fmt: skip
@option("--tensorrt", "version", section="Output", metavar="VERSION",
        help="With --dry-run: the version of TensorRT.",
        default_text="the oldest of the target")  # fmt: skip
@common_options
def build(
    *,
    export: Path,
    target: str,
    builder: str | None,
    capabilities: str | None,
    graphs: tuple[str, ...],
    precision: str | None,
    profiles: tuple[str, ...],
    recipe: Path | None,
    workspace: int | None,
    optimization_level: int | None,
    tf32: bool,
    version_compatible: bool,
    hardware_compatible: str,
    strip_weights: bool,
    refittable: bool,
    trtexec: bool,
    dry_run: bool,
    version: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Build TensorRT engines of an export.

    TensorRT builds on the device that the engines are for, and only that device loads them.
    TensorRT for RTX (--target rtx or --builder tensorrt-rtx) builds on any machine one engine
    for many GPUs. The precision is that of the export (export --dtype). Engines are written
    to EXPORT/engines with a build record; the version that built an engine loads it.
    """
    from lora_export.commands import engines
    from lora_export.engines.engine_options import EngineOptions, library_for
    from lora_export.ondevice.trt.libraries import TENSORRT_RTX

    if version is not None and not dry_run:
        msg = "--tensorrt needs --dry-run: engines are built by the installed version"
        raise click.UsageError(msg)
    library = library_for(target, builder)
    if capabilities is not None and library != TENSORRT_RTX:
        msg = "--compute-capability needs --target rtx or --builder tensorrt-rtx"
        raise click.UsageError(msg)
    options = EngineOptions(
        library=library,
        compute_capabilities=_capabilities(capabilities),
        precision=precision,
        profiles=_profiles(profiles, recipe),
        workspace_bytes=None if workspace is None else workspace * _MEBIBYTE,
        optimization_level=optimization_level,
        tf32=tf32,
        version_compatible=version_compatible,
        hardware_compatibility=hardware_compatible,
        strip_weights=strip_weights,
        refit=refittable,
    )
    with Console(as_json=as_json, quiet=quiet) as console:
        if dry_run:
            rows = engines.plan_build(
                export, target, graphs=graphs, options=options, tensorrt=version
            )
            lines = [line for row in rows for line in _planned(row, export)]
            console.finish({"export": str(export), "dry_run": rows}, lines)
            return 0
        records = engines.build(
            export, target, graphs=graphs, options=options, trtexec=trtexec, progress=console
        )
        lines = [*(_built(each) for each in records), _next(export, library, target)]
        console.finish({"engines": records}, lines)
    return 0


def _capabilities(text: str | None) -> tuple[str, ...]:
    """Return the compute capabilities of ``8.6,8.9``."""
    return tuple(each.strip() for each in text.split(",")) if text is not None else ()


def _profiles(texts: Sequence[str], recipe: Path | None) -> list[Any]:
    """Return the profiles of flags, else of a recipe."""
    from lora_export.commands.recipe import load_recipe
    from lora_export.engines.profiles import axis_ranges, parse_profile

    if texts:
        return [parse_profile(text) for text in texts]
    if recipe is None:
        return []
    return [axis_ranges(each) for each in load_recipe(recipe).profiles]


def _planned(row: PlannedEngine, export: Path) -> list[str]:
    """Return a description of a build, as lines; the last is a command that can be pasted.

    But for a rewritten graph, which is there during a build only.
    """
    from lora_export.ondevice.trt.build_settings import BuildSettings
    from lora_export.ondevice.trt.libraries import TENSORRT_RTX, library_title

    settings = BuildSettings.from_json(row["settings"])
    by = f"{library_title(row['library'])} {row['tensorrt']}"
    lines = [f"{row['plan']} from {row['onnx']}, {by}"]
    if row["rewritten"]:
        lines.append(
            "  its optional inputs become required: the parser would drop them; --trtexec writes "
            "that graph for the time of the build"
        )
    lines += aligned(
        [
            ("precision", settings.precision),
            ("flags", ", ".join(row["flags"])),
            ("workspace", _workspace(settings)),
            ("optimization level", str(settings.optimization_level or "TensorRT's own")),
            ("hardware", _hardware(row["library"], settings)),
            ("refittable", f"{len(settings.refittable)} weights"),
        ]
    )
    for number, profile in enumerate(settings.profiles):
        lines.append(f"  profile {number}")
        lines += aligned(
            [
                (name, f"{_shape(r.min)} {_shape(r.opt)} {_shape(r.max)}")
                for name, r in sorted(profile.items())
            ],
            indent=4,
        )
    if row["library"] == TENSORRT_RTX:
        return lines
    if row["trtexec"] is None:
        return [*lines, "  trtexec cannot: it refits all or nothing"]
    start = shell_command(["cd", export])
    folder = shell_command(["mkdir", "-p", Path(row["plan"]).parent])
    return [*lines, FinishedLine(f"  ({start} && {folder} && {row['trtexec']})")]


def _hardware(library: str, settings: BuildSettings) -> str:
    """Return the GPUs that load a plan."""
    from lora_export.ondevice.trt.libraries import library_row

    if not library_row(library).builds_ahead:
        return settings.hardware_compatibility
    if settings.compute_capabilities:
        return f"compute capability {', '.join(settings.compute_capabilities)}"
    return f"compute capability {', '.join(library_row(library).default_capabilities)} and later"


def _workspace(settings: BuildSettings) -> str:
    if settings.workspace_bytes is None:
        return "all there is"
    return f"{settings.workspace_bytes // _MEBIBYTE} MiB"


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _next(export: Path, library: str, target: str) -> FinishedLine:
    """Return the line with the next command: pack ready engines, measure those of this device."""
    from lora_export.ondevice.trt.libraries import library_row

    if library_row(library).builds_ahead:
        return next_line(["lora-export", "bundle", export, "--target", target])
    return next_line(["lora-export", "bench", export, "--runner", "tensorrt"])


def _built(record: BuildRecord) -> str:
    """Return a line about a built engine."""
    from lora_export.ondevice.trt.libraries import what_ran

    plan = record["plan"]
    gpu = record["gpu"]
    by = what_ran(record["library"], record["tensorrt"], None if gpu is None else gpu["name"])
    return f"{plan['file']}: {size(plan['bytes'])}, {record['seconds']:.1f} s, by {by}"


@click.command(
    "refit",
    cls=Command,
    examples="""
lora-export build out --target auto --graph base --refit
lora-export refit out --target auto --adapter mine
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@option("--target", section="Input", required=True, type=DEVICE,
        help="The device, which must be this one; auto detects it.")  # fmt: skip
@option("--adapter", section="Adapters", required=True, metavar="NAME or NAME=PATH",
        help="An adapter of the export, or one from a directory.")  # fmt: skip
@common_options
def refit(*, export: Path, target: str, adapter: str, as_json: bool, quiet: bool) -> int:
    """Make the engine of an adapter from the refittable engine of the base, without a build.

    The engine of the base is not changed. Build it with: lora-export build --refit.
    """
    from lora_export.commands import engines
    from lora_export.core.adapter_spec import AdapterSpec

    given = parse_adapter(adapter)
    named = "name" in given
    with Console(as_json=as_json, quiet=quiet) as console:
        record = engines.refit(
            export,
            target,
            given["name"] if named else given["source"],
            source=AdapterSpec(source=given["source"]) if named else None,
            progress=console,
        )
        library = record["library"]
        console.finish({"engine": record}, [_built(record), _next(export, library, target)])
    return 0
