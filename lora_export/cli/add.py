"""``add``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli.console import (
    Console,
    adapter_options,
    combine_options,
    combine_table,
    common_options,
    of_adapters,
    parse_adapter,
    parse_scales,
)
from lora_export.cli.outcome import describe, render

__all__ = ["add"]


@click.command("add")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--adapter", "adapters", multiple=True, required=True, metavar="[NAME=]PATH",
              help="A LoRA adapter; repeatable.")  # fmt: skip
@click.option("--base", metavar="PATH_OR_ID",
              help="The base checkpoint; needed for an exact merge only if the export has another "
                   "dtype.")  # fmt: skip
@click.option("--labels", help="Names of the classes, separated by commas.")
@click.option("--drop", multiple=True, metavar="PATTERN",
              help="Leave out the adapter's tensors whose names match; repeatable.")  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace an adapter of the same name.")
@click.option("--strict", is_flag=True, help="Fail if an adapter names a different base.")
@adapter_options
@combine_options
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
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> int:
    """Add adapters to EXPORT, an existing export directory, without torch and without tracing."""
    from lora_export.commands.add import add as add_to_export
    from lora_export.commands.recipe import make_combine, make_specs

    names = [label.strip() for label in labels.split(",")] if labels else None
    common = {
        "drop": list(drop),
        "labels": names,
        **of_adapters(adapter_format, alpha, enable_lora, subfolder),
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
