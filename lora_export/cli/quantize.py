"""``quantize``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import BLOCK_SIZE, block_size_of, common_options, out_option
from lora_export.cli.outcome import describe, render
from lora_export.core.quantization import METHOD_NAMES

__all__ = ["quantize"]


@click.command(
    "quantize",
    cls=Command,
    examples="""
lora-export quantize out -o out-int8
lora-export quantize out -o out-int4 --weights int4 --keep "*down_proj"
""",
)
@argument("export", "The export directory to copy.", type=click.Path(path_type=Path))
@option("--weights", section="Quantization", type=click.Choice(["int4", "int8"]), default="int8",
        help="The format of the weights of matrix products.")  # fmt: skip
@option("--block-size", section="Quantization", type=BLOCK_SIZE, metavar="SIZE",
        help="The number of inputs that share a scale; all is one for each output, "
        "which graphs of opset 20 have.", default_text="32 for int4, 256 for int8")  # fmt: skip
@option("--method", section="Quantization", type=click.Choice(METHOD_NAMES), default="search",
        help="How integers are found. gptq loses least: it runs the model on sentences of the "
        "package. signed is not for TensorRT.")  # fmt: skip
@option("--keep", section="Quantization", multiple=True, metavar="PATTERN",
        help="Leave modules whose names match in float.")  # fmt: skip
@option("--embeddings", section="Quantization", type=click.Choice(["int8", "keep"]),
        default="int8", help="The format of embeddings.")  # fmt: skip
@option("--head", section="Quantization", type=click.Choice(["int4", "int8", "keep"]),
        help="The format of the layer that gives the logits of tokens.",
        default_text="that of --weights")  # fmt: skip
@out_option("The new export directory.", required=True, metavar="DIR",
            type=click.Path(path_type=Path))  # fmt: skip
@common_options
def quantize(
    *, export: Path, output: Path, block_size: str | None, as_json: bool, quiet: bool, **flags: Any
) -> int:
    """Write a quantized copy of an export and its adapters, without torch."""
    from lora_export.commands.quantize import quantize as quantize_export
    from lora_export.commands.recipe_sections import QuantizeSpec

    spec = QuantizeSpec(
        block_size=block_size_of(block_size),  # type: ignore[arg-type]
        **{**flags, "keep": list(flags["keep"])},
    )
    with Console(as_json=as_json, quiet=quiet) as console:
        outcome = quantize_export(export, output, spec, progress=console)
        console.finish(describe(outcome), render(outcome))
    return 0
