"""``verify``: the command."""

from __future__ import annotations

from pathlib import Path

import click

from lora_export.cli.console import (
    SEED,
    Console,
    adapter_options,
    common_options,
    of_adapters,
    parse_adapter,
)
from lora_export.cli.loss_options import loss_options
from lora_export.cli.outcome import describe, render
from lora_export.core.errors import UsageError
from lora_export.core.modes import BASE_GRAPH

__all__ = ["verify"]


@click.command("verify")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--base", metavar="PATH_OR_ID",
              help="The base checkpoint: compare with torch and PEFT.")  # fmt: skip
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=PATH",
              help="Where an adapter is now, if it has moved; repeatable.")  # fmt: skip
@click.option("--only", multiple=True, metavar="NAME",
              help="Verify this adapter, or base, and no other; repeatable. All.")  # fmt: skip
@click.option("--dataset", type=click.Path(path_type=Path),
              help="JSONL of examples: compare what is predicted, too.")  # fmt: skip
@click.option("--metric", metavar="METRIC",
              help="How they are scored: accuracy, f1, matthews, pearson, exact_match, rouge, "
                   "bleu or perplexity; as the task usually is.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True,
              help="The most tokens of a text that is written for an example.")  # fmt: skip
@click.option("--disagreements", type=click.Path(path_type=Path), metavar="FILE.jsonl",
              help="Write every example on which graph and reference differ.")  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seeds the inputs.")
@click.option("--allow-no-effect", is_flag=True, help="Accept an adapter without any effect.")
@loss_options
@click.option(
    "--strict",
    is_flag=True,
    help="Fail if an adapter is ambiguous or unverified, or names a different base.",
)
@adapter_options
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
    """Verify EXPORT again: against torch with --base, else against its golden outputs.

    How adapters were read is recorded; --adapter-format, --alpha and --enable-lora say otherwise of
    those that --adapter names.
    """
    from lora_export.commands.recipe import make_specs
    from lora_export.commands.verify import verify as verify_again

    reading = of_adapters(adapter_format, alpha, enable_lora, subfolder)
    if reading and not adapters:
        msg = "it is said how an adapter is read, but not which"
        raise UsageError(msg, hint="Name it: --adapter NAME=PATH.")
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
        lines = render(outcome)
        if others := [name for name in names if name not in verified]:
            lines.append(f"  not verified now, as it was recorded: {', '.join(others)}")
        console.finish({**describe(outcome), "verified": verified}, lines)
    return outcome.exit_code(strict=strict)
