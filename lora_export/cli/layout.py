"""``layout``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import common_options, out_option
from lora_export.cli.text import size
from lora_export.cli.words import Word
from lora_export.layouts.runtime_names import RUNTIME_NAMES

if TYPE_CHECKING:
    from lora_export.commands.layout import RuntimeLayout

__all__ = ["layout"]


@click.command(
    "layout",
    cls=Command,
    examples="""
lora-export layout out --for genai --adapter chat -o out-genai
# a directory for each adapter, or one with all packs of a swappable export
lora-export layout out --for genai -o out-genai
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@option("--for", "runtime", section="Output", required=True, type=Word("runtime", RUNTIME_NAMES),
        help="The runtime that opens the directory.")  # fmt: skip
@option("--adapter", section="Input", metavar="NAME",
        help="The adapter that the directory is for, or base.", default_text="all")  # fmt: skip
@out_option("The new directory.", required=True, metavar="DIR",
            type=click.Path(path_type=Path))  # fmt: skip
@option("--replace", section="Output", is_flag=True,
        help="Replace a directory that this command wrote.")  # fmt: skip
@common_options
def layout(
    *,
    export: Path,
    runtime: str,
    adapter: str | None,
    output: Path,
    replace: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Write an export as a directory that another runtime opens as its documentation says."""
    from lora_export.commands.layout import layout as write_layout

    with Console(as_json=as_json, quiet=quiet) as console:
        done = write_layout(
            export, runtime, output, adapter=adapter, replace=replace, progress=console
        )
        console.finish(done.as_json(), _lines(done))
    return 0


def _lines(done: RuntimeLayout) -> list[str]:
    lines = []
    for each in done.folders:
        held = ", ".join(each.adapters) or "the base"
        lines += [
            (
                f"{each.folder}: {held} for {done.runtime}, {len(each.files)} files, "
                f"{size(each.size_bytes)}"
            ),
            f"  open it with: {done.opening.format(folder=repr(str(each.folder)))}",
        ]
    return lines
