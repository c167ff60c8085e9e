"""``bundle``, ``bundle verify`` and ``bundle unpack``: the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.console import Console, common_options
from lora_export.cli.text import size
from lora_export.ondevice.printable import FinishedLine, shell_command

if TYPE_CHECKING:
    from lora_export.ondevice.bundle.bundle_index import Index

__all__ = ["bundle"]

_PACK: Final = "pack"
_BUILDERS: Final = ("tensorrt", "tensorrt-rtx")


class _PackByDefault(click.Group):
    """A group whose first word is a command, or else an export to pack."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front of arguments that name none."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [_PACK, *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; what is none is an export, and the command is to pack it."""
        return super().get_command(ctx, cmd_name) or self.commands[_PACK]


@click.group("bundle", cls=_PackByDefault, invoke_without_command=False)
def bundle() -> None:
    """Pack an export for a device: lora-export bundle EXPORT --target jetson-orin -o FILE.tar.

    What is unpacked there has one entry point, run.py, which builds, verifies and measures.
    """


@bundle.command(_PACK)
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="The device.")
@click.option("--builder", type=click.Choice(_BUILDERS),
              help="The library of the engines; tensorrt-rtx for --target rtx.")  # fmt: skip
@click.option("-o", "--out", "output", type=click.Path(path_type=Path), metavar="FILE",
              help="The archive, .tar or .tar.gz; beside the export.")  # fmt: skip
@click.option("--name", help="The folder in the archive; the export's and the target's name.")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME",
              help="An adapter that goes with it; repeatable. All of them.")  # fmt: skip
@click.option("--profile", "profiles", multiple=True, metavar="AXIS=MIN:OPT:MAX,…",
              help="Shapes that the engines cover; repeatable, one profile each.")  # fmt: skip
@click.option("--recipe", type=click.Path(path_type=Path),
              help="Take profiles, latency and refit of a recipe.")  # fmt: skip
@click.option("--refit", is_flag=True, help="Put the adapters into the base's engine.")
@click.option("--allow-failed", is_flag=True, help="Pack a graph that failed its verification.")
@click.option("--replace", is_flag=True, help="Replace the bundle, where there is one.")
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
    """Pack EXPORT for a device (the default command).

    Engines of TensorRT are built on the device. Those of TensorRT for RTX (--target rtx, or another
    target with --builder tensorrt-rtx) are built before, and go along without graphs and weights.
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
        unpacking = shell_command(["tar", "xf", packed.path.name])
        running = shell_command(["python3", f"{packed.name}/run.py"])
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
                FinishedLine(f"  on the device: {unpacking} && {running}"),
            ],
        )
    return 0


@bundle.command("verify")
@click.argument("path", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@click.option("--sha256", metavar="HEX", help="What the index has to be: as pack printed it.")
@common_options
def verify(*, path: Path, sha256: str | None, as_json: bool, quiet: bool) -> int:
    """Require that a bundle, packed or unpacked, is what was packed; run nothing of it."""
    from lora_export.bundle.packing import verify_bundle
    from lora_export.core.errors import BundleError

    with Console(as_json=as_json, quiet=quiet) as console:
        index = verify_bundle(path, console)
        if sha256 is not None and sha256.lower() != index.digest:
            msg = f"the index of {str(path)!r} is {index.digest}, not {sha256}"
            raise BundleError(msg, hint="It is another bundle than the one that was meant.")
        console.finish(_described(path, index), _rendered(path, index))
    return 0


@bundle.command("unpack")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--out", "output", type=click.Path(path_type=Path),
              help="A new folder; the bundle's name.")  # fmt: skip
@common_options
def unpack(*, path: Path, output: Path | None, as_json: bool, quiet: bool) -> int:
    """Unpack a bundle without trusting it: whole and as it was packed, or not at all."""
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
