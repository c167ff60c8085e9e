"""``build`` and ``refit``: the commands for TensorRT engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.console import Console, common_options, parse_adapter
from lora_export.cli.text import aligned, size
from lora_export.ondevice.printable import FinishedLine, shell_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.engines.engine_build import PlannedEngine
    from lora_export.ondevice.trt.build_settings import BuildSettings
    from lora_export.ondevice.trt.record_table import BuildRecord

__all__ = ["build", "refit"]

_MEBIBYTE: Final = 1 << 20


@click.command("build")
@click.argument("export", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    help="The device: this one (auto finds out), or rtx for GPUs from Ampere on.",
)
@click.option(
    "--builder",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="The library: tensorrt-rtx (needs no GPU) for the target rtx by default, else tensorrt.",
)
@click.option(
    "--compute-capability",
    "capabilities",
    metavar="8.6,8.9,…",
    help="With tensorrt-rtx: the GPUs that the engine is for; 8.0 and later.",
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    help="A graph of the export; repeatable. Those that serve adapters.",
)
@click.option("--precision", help="fp32, fp16 or bf16: what the export has to be in.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="AXIS=MIN:OPT:MAX,…",
    help="Shapes that the engine covers; repeatable, one profile each.",
)
@click.option("--recipe", type=click.Path(path_type=Path), help="Take the profiles of a recipe.")
@click.option(
    "--workspace",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Memory that layers may use; all there is.",
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="How long kernels are searched for, 0 to 5; TensorRT's own, 3.",
)
@click.option("--tf32", is_flag=True, help="Let float32 products round their factors to TF32.")
@click.option(
    "--version-compatible", is_flag=True, help="A plan that later versions of TensorRT load too."
)
@click.option(
    "--hardware-compatible",
    default="none",
    show_default=True,
    help="A plan for other GPUs too: ampere+ or same-compute-capability.",
)
@click.option(
    "--strip-weights",
    is_flag=True,
    help="A plan without weights; they are read from the graph's files.",
)
@click.option(
    "--refit",
    "refittable",
    is_flag=True,
    help="Let the weights that adapters change be changed afterwards.",
)
@click.option("--trtexec", is_flag=True, help="Build with the command line tool trtexec.")
@click.option("--dry-run", is_flag=True, help="Print what would be done; needs no TensorRT.")
@click.option(
    "--tensorrt",
    "version",
    metavar="VERSION",
    help="With --dry-run: the version; the oldest of the target.",
)
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
    """Build TensorRT engines of EXPORT.

    TensorRT builds on the device that the engines are for, and loads them there alone. TensorRT
    for RTX (--target rtx, or another target with --builder tensorrt-rtx) builds on any machine, an
    engine for many GPUs. The precision is the graph's: choose it when exporting, with --dtype. A
    plan lies in engines/ with its build record, and is loaded by the version that built it.
    """
    from lora_export.commands import engines
    from lora_export.engines.engine_options import EngineOptions, library_for
    from lora_export.ondevice.trt.libraries import TENSORRT_RTX

    if version is not None and not dry_run:
        msg = "--tensorrt is for --dry-run: an engine is built by the version that is installed"
        raise click.UsageError(msg)
    library = library_for(target, builder)
    if capabilities is not None and library != TENSORRT_RTX:
        msg = "--compute-capability is for --target rtx or --builder tensorrt-rtx"
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
        console.finish({"engines": records}, [_built(each) for each in records])
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


def _built(record: BuildRecord) -> str:
    """Return a line about a built engine."""
    from lora_export.ondevice.trt.libraries import what_ran

    plan = record["plan"]
    gpu = record["gpu"]
    by = what_ran(record["library"], record["tensorrt"], None if gpu is None else gpu["name"])
    return f"{plan['file']}: {size(plan['bytes'])}, {record['seconds']:.1f} s, by {by}"


@click.command("refit")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="The device, which is this one; auto finds out.")
@click.option(
    "--adapter",
    required=True,
    metavar="NAME or NAME=PATH",
    help="An adapter of the export, or one that it does not hold.",
)
@common_options
def refit(*, export: Path, target: str, adapter: str, as_json: bool, quiet: bool) -> int:
    """Put an adapter into the refittable engine of EXPORT's base, without building.

    The base's engine stays as it is: the adapter gets a plan of its own. Build the base's with
    --refit.
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
        console.finish({"engine": record}, [_built(record)])
    return 0
