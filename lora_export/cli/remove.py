"""``remove``: the command."""

from __future__ import annotations

from pathlib import Path

import click

from lora_export.cli.console import Console, common_options
from lora_export.cli.outcome import describe, render

__all__ = ["remove"]


@click.command("remove")
@click.argument("export", type=click.Path(path_type=Path))
@click.argument("name")
@common_options
def remove(*, export: Path, name: str, as_json: bool, quiet: bool) -> int:
    """Take the adapter NAME out of EXPORT."""
    from lora_export.commands.remove import remove as remove_from_export

    with Console(as_json=as_json, quiet=quiet) as console:
        outcome = remove_from_export(export, name, progress=console)
        console.finish(describe(outcome), render(outcome))
    return 0
