"""``bundle``, ``bundle verify`` and ``bundle unpack``: the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.closing import on_device_line
from lora_export.cli.console import Console
from lora_export.cli.help_format import Group, argument, option
from lora_export.cli.options import common_options, out_option
from lora_export.cli.text import size
from lora_export.cli.words import DEVICE

if TYPE_CHECKING:
    from lora_export.ondevice.bundle.bundle_index import Index

__all__ = ["bundle"]

_PACK: Final = "pack"
_BUILDERS: Final = ("tensorrt", "tensorrt-rtx")


class _PackByDefault(Group):
    """A group whose first word is a command, or else an export to pack."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front of arguments that name none."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [_PACK, *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; what is none is an export, and the command is to pack it."""
        return super().get_command(ctx, cmd_name) or self.commands[_PACK]


@click.group(
    "bundle",
    cls=_PackByDefault,
    invoke_without_command=False,
    examples="""
lora-export bundle out --target jetson-orin -o out.tar
lora-export bundle verify out.tar
""",
)
def bundle() -> None:
    """Pack an export for a device, and check or unpack a bundle.

    On the device, run.py of the unpacked bundle builds the engines, verifies and measures.
    The flags of a bundle: lora-export bundle pack --help.
    """


@bundle.command(
    _PACK,
    examples="""
lora-export bundle out --target jetson-orin -o out.tar

# On the device
tar xf out.tar && python3 out-jetson-orin/run.py
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@option("--target", section="Input", required=True, type=DEVICE, help="The device.")
@option("--recipe", section="Input", type=click.Path(path_type=Path), metavar="FILE",
        help="A recipe with profiles, latency and refit.")  # fmt: skip
@option("--adapter", "adapters", section="Adapters", multiple=True, metavar="NAME",
        help="An adapter to pack.", default_text="all")  # fmt: skip
@option("--builder", section="Engine", type=click.Choice(_BUILDERS), metavar="LIBRARY",
        help="The library that builds the engines.",
        default_text="tensorrt-rtx for --target rtx, else tensorrt")  # fmt: skip
@option("--profile", "profiles", section="Engine", multiple=True, metavar="AXIS=MIN:OPT:MAX,…",
        help="Sizes of the dynamic axes: one optimization profile.")  # fmt: skip
@option("--refit", section="Engine", is_flag=True,
        help="Put the adapters into the engine of the base.")  # fmt: skip
@option("--allow-failed", section="Gate", is_flag=True,
        help="Pack a graph that failed its verification.")  # fmt: skip
@out_option("The archive, .tar or .tar.gz.", type=click.Path(path_type=Path),
            metavar="FILE", default_text="beside the export")  # fmt: skip
@option("--name", section="Output", metavar="NAME", help="The directory in the archive.",
        default_text="EXPORT-TARGET")  # fmt: skip
@option("--replace", section="Output", is_flag=True, help="Replace an existing bundle.")
@common_options
def pack(
    *,
    export: Path,
    target: str,
    builder: str | None,
    output: Path | None,
    name: str | None,
    adapters: tuple[str, ...],
    profiles: tuple[str, ...],
    recipe: Path | None,
    refit: bool,
    allow_failed: bool,
    replace: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Pack an export for a device (the default command).

    Engines of TensorRT are built on the device. Engines of TensorRT for RTX (--target rtx or
    --builder tensorrt-rtx) must be built before, and are packed without graphs and weights.
    """
    from lora_export.bundle.bundle_names import default_path
    from lora_export.bundle.device_bundle import LatencySettings, bundle_export
    from lora_export.commands.recipe import load_recipe
    from lora_export.engines.engine_options import EngineOptions, library_for
    from lora_export.engines.profiles import axis_ranges, parse_profile
    from lora_export.ondevice.trt.libraries import library_row

    library = library_for(target, builder)
    given, latency = [parse_profile(text) for text in profiles], LatencySettings()
    if recipe is not None:
        table = load_recipe(recipe)
        if not library_row(library).builds_ahead:  # else the engines have theirs
            given = given or [axis_ranges(each) for each in table.profiles]
        spec, refit = table.latency, refit or table.bundle.refit
        latency = LatencySettings(spec.batch, spec.length, spec.rounds, spec.max_ratio)
    with Console(as_json=as_json, quiet=quiet) as console:
        packed = bundle_export(
            export,
            target,
            output or default_path(export, target),
            name=name,
            adapters=adapters,
            options=EngineOptions(profiles=given, refit=refit, library=library),
            latency=latency,
            allow_failed=allow_failed,
            replace=replace,
            progress=console,
        )
        console.finish(
            {
                "file": str(packed.path),
                "name": packed.name,
                "target": target,
                "sha256": packed.sha256,
                "bytes": packed.size_bytes,
                "files": packed.files,
            },
            [
                f"{packed.path}: {packed.files} files, {size(packed.size_bytes)}, for {target}",
                f"  index {packed.sha256}",
                on_device_line(packed.path.name, packed.name),
            ],
        )
    return 0


@bundle.command("verify", examples="lora-export bundle verify out.tar")
@argument("path", "The bundle, packed or unpacked.", metavar="FILE|DIR",
          type=click.Path(path_type=Path))  # fmt: skip
@option("--sha256", section="Gate", metavar="HEX",
        help="The expected hash of the index, as pack printed it.")  # fmt: skip
@common_options
def verify(*, path: Path, sha256: str | None, as_json: bool, quiet: bool) -> int:
    """Check that every file of a bundle is as it was packed; nothing in it is run."""
    from lora_export.bundle.packing import verify_bundle
    from lora_export.core.errors import BundleError

    with Console(as_json=as_json, quiet=quiet) as console:
        index = verify_bundle(path, console)
        if sha256 is not None and sha256.lower() != index.digest:
            msg = f"the index of {str(path)!r} is {index.digest}, not {sha256}"
            raise BundleError(msg, hint="This is a different bundle; fetch the right one.")
        console.finish(_described(path, index), _rendered(path, index))
    return 0


@bundle.command("unpack", examples="lora-export bundle unpack out.tar -o out")
@argument("path", "The bundle.", metavar="FILE", type=click.Path(path_type=Path))
@out_option("A new directory.", type=click.Path(path_type=Path), metavar="DIR",
            default_text="the name of the bundle")  # fmt: skip
@common_options
def unpack(*, path: Path, output: Path | None, as_json: bool, quiet: bool) -> int:
    """Unpack a bundle completely and as it was packed, or not at all."""
    from lora_export.bundle.packing import unpack as unpack_bundle
    from lora_export.bundle.packing import verify_bundle

    with Console(as_json=as_json, quiet=quiet) as console:
        folder = output or Path(verify_bundle(path, console).name)
        index = unpack_bundle(path, folder, console)
        console.finish(_described(folder, index), _rendered(folder, index))
    return 0


def _described(path: Path, index: Index) -> dict[str, Any]:
    return {
        "path": str(path),
        "name": index.name,
        "target": index.contents.target,
        "tool": index.tool,
        "sha256": index.digest,
        "bytes": index.size_bytes,
        "files": len(index.files),
        "holds": list(index.contents.checks),
    }


def _rendered(path: Path, index: Index) -> list[str]:
    return [
        (
            f"{path}: {index.name} for {index.contents.target}, {len(index.files)} files, "
            f"{size(index.size_bytes)}, each as it was packed by {index.tool}"
        ),
        f"  holds {', '.join(index.contents.checks)}",
        f"  index {index.digest}",
    ]
