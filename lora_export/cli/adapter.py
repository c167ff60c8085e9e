"""``adapter convert``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_export.cli.console import Console, common_options

if TYPE_CHECKING:
    from lora_export.commands.convert import AdapterFormat

__all__ = ["adapter"]


@click.group("adapter")
def adapter() -> None:
    """Work on an adapter itself."""


@adapter.command("convert")
@click.argument("source", metavar="ADAPTER", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(["peft", "onnx_adapter", "edge-llm"]),
              help="The format to write.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path),
              help="A new folder; for onnx_adapter a new file.")  # fmt: skip
@click.option("--base", type=click.Path(path_type=Path),
              help="The base checkpoint: compare names and shapes, record it.")  # fmt: skip
@click.option("--export", type=click.Path(path_type=Path), metavar="EXPORT",
              help="A swappable export: the onnx_adapter is the pack for its graph.")  # fmt: skip
@click.option("--dtype", help="What is stored: float32 for onnx_adapter, float16 for edge-llm.")
@click.option("--scale", type=float, default=1.0, help="Multiply the updates.")
@click.option("--drop", multiple=True, metavar="PATTERN", help="Leave out tensors.")
@common_options
def convert(
    *,
    source: Path,
    to: AdapterFormat,
    out: Path,
    base: Path | None,
    export: Path | None,
    dtype: str | None,
    scale: float,
    drop: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Write ADAPTER in another format, its scales folded in or recorded exactly.

    peft: a folder that PEFT loads. onnx_adapter: ONNX Runtime's file for swappable graphs, and the
    same as safetensors beside it; with --export as `add` makes it. edge-llm: TensorRT-Edge-LLM's
    processed adapter.
    """
    from dataclasses import asdict

    from lora_export.commands.convert import convert as convert_adapter

    with Console(as_json=as_json, quiet=quiet) as console:
        done = convert_adapter(
            source,
            out,
            to=to,
            base=base,
            export=export,
            dtype=dtype,
            scale=scale,
            drop=drop,
            progress=console,
        )
        text = f"{out}: {done.modules} modules, {done.saved} saved parameters, as {to}"
        console.finish(asdict(done), [text])
    return 0
