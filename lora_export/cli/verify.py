"""``verify``: the command."""

from __future__ import annotations

from pathlib import Path

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import (
    SEED,
    adapter_keys,
    adapter_options,
    base_option,
    common_options,
    loss_options,
    parse_adapter,
)
from lora_export.cli.outcome import describe, render
from lora_export.cli.words import METRIC
from lora_export.core.errors import UsageError
from lora_export.core.modes import BASE_GRAPH

__all__ = ["verify"]


@click.command(
    "verify",
    cls=Command,
    examples="""
# Against the adapters in PEFT
lora-export verify out --base ./base

# Against the outputs that are stored in the export; no torch needed
lora-export verify out

# On your own data
lora-export verify out --base ./base --dataset test.jsonl
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@base_option("The base checkpoint: compare with the adapters in PEFT.",
             default_text="compare with the stored outputs")  # fmt: skip
@option("--dataset", section="Input", type=click.Path(path_type=Path), metavar="FILE.jsonl",
        help="Examples: compare the predictions and scores too.")  # fmt: skip
@option("--metric", section="Verification", type=METRIC,
        help="The score of the data set.", default_text="that of the task")  # fmt: skip
@option("--max-new-tokens", section="Verification", type=click.IntRange(1), default=64,
        help="The largest number of tokens to generate for an example.")  # fmt: skip
@option("--adapter", "adapters", section="Adapters", multiple=True, metavar="NAME=PATH",
        help="The place of an adapter that has moved since it was added.")  # fmt: skip
@option("--only", section="Adapters", multiple=True, metavar="NAME",
        help="Verify this adapter, or base, and no other.", default_text="all")  # fmt: skip
@adapter_options
@option("--seed", section="Verification", type=SEED, default=0,
        help="The seed of the inputs.")  # fmt: skip
@option("--allow-no-effect", section="Verification", is_flag=True,
        help="Accept an adapter that changes nothing measurable.")  # fmt: skip
@loss_options
@option("--strict", section="Gate", is_flag=True,
        help="Fail if an adapter is ambiguous or unverified, or names a different "
             "base.")  # fmt: skip
@option("--disagreements", section="Output", type=click.Path(path_type=Path),
        metavar="FILE.jsonl",
        help="Write the examples on which graph and reference differ.")  # fmt: skip
@common_options
def verify(
    *,
    export: Path,
    base: str | None,
    adapters: tuple[str, ...],
    only: tuple[str, ...],
    dataset: Path | None,
    metric: str | None,
    max_new_tokens: int,
    disagreements: Path | None,
    seed: int,
    allow_no_effect: bool,
    min_gain: float | None,
    max_loss: float | None,
    max_metric_drop: float | None,
    strict: bool,
    adapter_format: str | None,
    alpha: float | None,
    enable_lora: str | None,
    subfolder: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Verify an export: with --base against the adapters in PEFT, else against stored outputs.

    The export records how each adapter was read. --adapter-format, --alpha, --enable-lora and
    --subfolder change that for the adapters that --adapter names.
    """
    from lora_export.commands.recipe import make_specs
    from lora_export.commands.verify import verify as verify_again

    reading = adapter_keys(adapter_format, alpha, enable_lora, subfolder)
    if reading and not adapters:
        msg = "options on how to read an adapter need --adapter"
        raise UsageError(msg, hint="Name the adapter: --adapter NAME=PATH.")
    rows = [{**parse_adapter(text), **reading} for text in adapters]
    with Console(as_json=as_json, quiet=quiet) as console:
        outcome = verify_again(
            export,
            base=base,
            adapters=make_specs(rows, {}),
            only=only,
            dataset=dataset,
            metric=metric,
            max_new_tokens=max_new_tokens,
            disagreements=disagreements,
            seed=seed,
            allow_no_effect=allow_no_effect,
            min_gain=min_gain,
            max_loss=max_loss,
            max_metric_drop=max_metric_drop,
            strict=strict,
            progress=console,
        )
        names = (BASE_GRAPH, *outcome.manifest.adapters)
        verified = [name for name in names if name in (only or names)]
        others = ", ".join(name for name in names if name not in verified)
        remarks = [f"  not compared in this run: {others}"] if others else []
        document = {**describe(outcome), "verified": verified}
        console.finish(document, render(outcome, remarks))
    return outcome.exit_code(strict=strict)
