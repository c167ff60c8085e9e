"""``generate``: the command."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import SEED, common_options
from lora_export.ondevice.printable import FinishedLine, printable

__all__ = ["generate"]

_OF_PROSE: Final = "\n\t\u200c\u200d\ufe0f"


@click.command(
    "generate",
    cls=Command,
    examples="""
lora-export generate out --adapter mine --prompt "Once upon a time"
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@option("--prompt", "prompts", section="Input", multiple=True, required=True, metavar="TEXT",
        help="The text to continue, or the input of the encoder.")  # fmt: skip
@option("--adapter", section="Adapters", metavar="NAME", help="The adapter to run.",
        default_text="the base alone")  # fmt: skip
@option("--max-new-tokens", section="Output", type=click.IntRange(min=1), default=64,
        help="The largest number of new tokens.")  # fmt: skip
@option("--temperature", section="Output", type=float, default=0.0,
        help="Divide the logits by this; 0 always takes the most likely token.")  # fmt: skip
@option("--top-k", section="Output", type=int, default=0,
        help="Sample from this many of the most likely tokens; 0 for all.")  # fmt: skip
@option("--top-p", section="Output", type=float, default=1.0,
        help="Sample from the most likely tokens up to this total probability.")  # fmt: skip
@option("--seed", section="Output", type=SEED, default=0,
        help="The seed of the sampling.")  # fmt: skip
@common_options
def generate(
    *,
    export: Path,
    adapter: str | None,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Generate text with an export, without torch.

    A decoder continues the prompt; an encoder-decoder answers it. An adapter with its own
    tokenizer is run with that tokenizer.
    """
    from lora_export.commands.generate import continue_texts, continues
    from lora_export.runtime.text_generation import Sampling

    told: list[str] = []

    def stream(text: str) -> None:
        if not told:  # now that there is something to say, and nothing was refused
            told.append(shown[0])
            sys.stdout.write(_printable_prose(shown[0]))
        sys.stdout.write(_printable_prose(text))
        sys.stdout.flush()

    streamed = not as_json and len(prompts) == 1
    with Console(as_json=as_json, quiet=quiet) as console:
        shown = prompts if continues(export) else [""] * len(prompts)
        found = continue_texts(
            export,
            prompts,
            adapter=adapter,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, top_k, top_p, seed),
            on_text=stream if streamed else None,
        )
        texts = [start + each.text for start, each in zip(shown, found, strict=True)]
        document = {"adapter": adapter, "continuations": [asdict(each) for each in found]}
        prose = _printable_prose("\n\n".join(texts))
        console.finish(document, [FinishedLine("" if streamed else prose)])


def _printable_prose(text: str) -> FinishedLine:
    """Return what a model wrote, with its lines, and the joiners of scripts and emoji."""
    return FinishedLine(printable(text, keep=_OF_PROSE))
