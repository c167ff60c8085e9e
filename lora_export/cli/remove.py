"""``remove``: the command."""

from __future__ import annotations

from pathlib import Path

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument
from lora_export.cli.options import common_options
from lora_export.cli.outcome import describe, render

__all__ = ["remove"]


@click.command("remove", cls=Command, examples="lora-export remove out mine")
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@argument("name", "The adapter to remove.")
@common_options
def remove(*, export: Path, name: str, as_json: bool, quiet: bool) -> int:
    """Remove an adapter from an export."""
    from lora_export.commands.remove import remove as remove_from_export

    with Console(as_json=as_json, quiet=quiet) as console:
        outcome = remove_from_export(export, name, progress=console)
        console.finish(describe(outcome), render(outcome))
    return 0
