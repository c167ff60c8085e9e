"""``quantize``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli.console import Console, common_options
from lora_export.cli.outcome import describe, render
from lora_export.core.quantization import BLOCK_SIZES

__all__ = ["quantize"]

_BLOCKS = [str(each) for each in BLOCK_SIZES]


@click.command("quantize")
@click.argument("export", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    "output",
    required=True,
    type=click.Path(path_type=Path),
    help="The new export directory.",
)
@click.option(
    "--weights",
    type=click.Choice(["int4", "int8"]),
    default="int8",
    show_default=True,
    help="The scheme of the weights of products.",
)
@click.option(
    "--block-size",
    type=click.Choice(_BLOCKS),
    metavar="SIZE",
    help="Inputs that share a scale: 16, 32, 64, 128 or 256; 32 for int4, all for int8.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Leave modules that fit as they are; repeatable.",
)
@click.option(
    "--embeddings",
    type=click.Choice(["int8", "keep"]),
    default="int8",
    show_default=True,
    help="The scheme of embeddings.",
)
@click.option(
    "--head",
    type=click.Choice(["int4", "int8", "keep"]),
    help="The scheme of the layer that gives the logits of tokens; that of the weights.",
)
@common_options
def quantize(
    *, export: Path, output: Path, block_size: str | None, as_json: bool, quiet: bool, **flags: Any
) -> int:
    """Write a quantized copy of EXPORT, adapters included, without torch."""
    from lora_export.commands.quantize import quantize as quantize_export
    from lora_export.commands.recipe_sections import QuantizeSpec

    spec = QuantizeSpec(
        block_size=int(block_size) if block_size else None,  # type: ignore[arg-type]
        **{**flags, "keep": list(flags["keep"])},
    )
    with Console(as_json=as_json, quiet=quiet) as console:
        outcome = quantize_export(export, output, spec, progress=console)
        console.finish(describe(outcome), render(outcome))
    return 0
