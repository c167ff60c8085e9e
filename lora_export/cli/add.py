"""``add``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import (
    adapter_keys,
    adapter_options,
    as_rank_option,
    base_option,
    combine_options,
    combine_table,
    common_options,
    labels_option,
    parse_adapter,
    parse_scales,
)
from lora_export.cli.outcome import describe, render

__all__ = ["add"]


@click.command(
    "add",
    cls=Command,
    examples="""
lora-export add out --adapter ./adapter
lora-export add out --adapter mine=org/adapter --replace
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@base_option("The base checkpoint; needed for an exact merge if the export has another dtype.")
@option("--adapter", "adapters", section="Adapters", multiple=True, required=True,
        metavar="[NAME=]PATH_OR_ID", help="A LoRA adapter: a directory or a hub id.")  # fmt: skip
@option("--replace", section="Adapters", is_flag=True,
        help="Replace an adapter of the same name.")  # fmt: skip
@option("--drop", section="Adapters", multiple=True, metavar="PATTERN",
        help="Leave out adapter tensors whose names match.")  # fmt: skip
@adapter_options
@as_rank_option
@combine_options
@labels_option
@option("--strict", section="Gate", is_flag=True,
        help="Fail if an adapter names a different base.")  # fmt: skip
@common_options
def add(
    *,
    export: Path,
    adapters: tuple[str, ...],
    base: str | None,
    labels: str | None,
    drop: tuple[str, ...],
    replace: bool,
    strict: bool,
    adapter_format: str | None,
    alpha: float | None,
    enable_lora: str | None,
    subfolder: str | None,
    scales: tuple[str, ...],
    as_rank: int | None,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> int:
    """Add adapters to an existing export, without torch and without tracing."""
    from lora_export.commands.add import add as add_to_export
    from lora_export.commands.recipe import make_combine, make_specs

    names = [label.strip() for label in labels.split(",")] if labels else None
    common = {
        "drop": list(drop),
        "labels": names,
        **adapter_keys(adapter_format, alpha, enable_lora, subfolder),
        "as_rank": as_rank,
    }
    rows = [{**parse_adapter(text), **common} for text in adapters]
    specs = make_specs(rows, parse_scales(scales))
    combined = make_combine(combine_table(flags))
    with Console(as_json=as_json, quiet=quiet) as console:
        outcome = add_to_export(
            export,
            specs,
            base=base,
            combine=combined,
            replace=replace,
            strict=strict,
            progress=console,
        )
        console.finish(describe(outcome), render(outcome))
    return 0
