"""``adapter convert``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_export.cli.closing import next_line
from lora_export.cli.console import Console
from lora_export.cli.help_format import Group, argument, option
from lora_export.cli.options import base_option, common_options, out_option
from lora_export.cli.words import ADAPTER_FORMAT, DTYPE

if TYPE_CHECKING:
    from lora_export.commands.convert import AdapterFormat, Converted
    from lora_export.ondevice.printable import FinishedLine

__all__ = ["adapter"]


@click.group("adapter", cls=Group)
def adapter() -> None:
    """Convert adapters to other formats."""


@adapter.command(
    "convert",
    examples="""
# A kohya file as a directory for PEFT
lora-export adapter convert style.safetensors --to peft -o style

# A LoHa, OFT or other adapter as one of LoRA, with its loss
lora-export adapter convert ./loha --to peft --base base --as-rank 16 -o lora

# The adapter file for a swappable graph
lora-export adapter convert ./adapter --to onnx_adapter --export out \\
    -o mine.onnx_adapter
""",
)
@argument("source", "The adapter.", metavar="ADAPTER", type=click.Path(path_type=Path))
@option("--to", section="Output", required=True, metavar="FORMAT",
        type=click.Choice(["peft", "onnx_adapter", "edge-llm"]),
        help="The format to write.")  # fmt: skip
@base_option("The base checkpoint: compare names and shapes with it, and record it.",
             type=click.Path(path_type=Path))  # fmt: skip
@option("--export", section="Input", type=click.Path(path_type=Path), metavar="EXPORT",
        help="With --to onnx_adapter: the swappable export that the file is for.")  # fmt: skip
@option("--scale", section="Adapters", type=float, default=1.0, metavar="FACTOR",
        help="Multiply the updates.")  # fmt: skip
@option("--as-rank", "--extract-rank", "as_rank", section="Adapters",
        type=click.IntRange(min=1), metavar="RANK",
        help="Of an adapter of another method than LoRA, or of whole tensors: the rank of the "
        "updates that are made of it; needs --base.")  # fmt: skip
@option("--adapter-format", section="Adapters", type=ADAPTER_FORMAT, metavar="FORMAT",
        help="The format of the adapter files.", default_text="detected")  # fmt: skip
@option("--drop", section="Adapters", multiple=True, metavar="PATTERN",
        help="Leave out tensors whose names match.")  # fmt: skip
@out_option("A new directory; for onnx_adapter a new file.", required=True,
            type=click.Path(path_type=Path))  # fmt: skip
@option("--dtype", "--precision", "dtype", section="Output", type=DTYPE,
        help="The dtype of the tensors.",
        default_text="float32 for onnx_adapter, float16 for edge-llm")  # fmt: skip
@common_options
def convert(
    *,
    source: Path,
    to: AdapterFormat,
    output: Path,
    base: Path | None,
    export: Path | None,
    dtype: str | None,
    scale: float,
    as_rank: int | None,
    adapter_format: str | None,
    drop: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Convert an adapter to another format, with its scales folded in or recorded exactly.

    peft: a directory that PEFT loads. onnx_adapter: the file that ONNX Runtime loads into
    swappable graphs, and the same tensors as safetensors beside it. edge-llm: the
    processed adapter of TensorRT-Edge-LLM.
    """
    from dataclasses import asdict

    from lora_export.commands.convert import convert as convert_adapter

    with Console(as_json=as_json, quiet=quiet) as console:
        done = convert_adapter(
            source,
            output,
            to=to,
            base=base,
            export=export,
            dtype=dtype,
            scale=scale,
            as_rank=as_rank,
            adapter_format=adapter_format,
            drop=drop,
            progress=console,
        )
        text = f"{output}: {done.modules} modules, {done.saved} saved parameters, as {to}"
        losses = [_loss_line(done)] if done.losses else []
        console.finish(asdict(done), [text, *losses, *_next_lines(output, to)])
    return 0


def _loss_line(done: Converted) -> str:
    """Return a line on what LoRA loses of another method."""
    worst = done.worst_loss
    assert worst is not None  # noqa: S101  (there are losses)
    if worst[1] == 0:
        return "nothing is lost: the updates are products"
    return f"largest loss: {worst[1]:.3g} of the change of {worst[0]}"


def _next_lines(output: Path, to: AdapterFormat) -> list[FinishedLine]:
    """Return the command that shows what was written, if it is in a format that is read."""
    return [next_line(["lora-export", "inspect", output])] if to == "peft" else []
