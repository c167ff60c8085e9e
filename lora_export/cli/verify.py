"""``verify``."""

from __future__ import annotations

from pathlib import Path

import click

from lora_export.cli.console import Console, common_options, parse_adapter
from lora_export.cli.outcome import describe, render

__all__ = ["verify"]


@click.command("verify")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--base", metavar="PATH_OR_ID",
              help="The base checkpoint: compare with torch and PEFT.")  # fmt: skip
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=PATH",
              help="Where an adapter is now, if it has moved; repeatable.")  # fmt: skip
@click.option("--dataset", type=click.Path(path_type=Path),
              help="JSONL of text and label: compare predictions too.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seeds the inputs.")
@click.option("--allow-no-effect", is_flag=True, help="Accept an adapter without any effect.")
@click.option("--strict", is_flag=True, help="Treat an ambiguous result as a failure.")
@common_options
def verify(
    *,
    export: Path,
    base: str | None,
    adapters: tuple[str, ...],
    dataset: Path | None,
    seed: int,
    allow_no_effect: bool,
    strict: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Verify EXPORT again: against torch with --base, else against its golden outputs."""
    from lora_export import maintenance
    from lora_export.recipe import AdapterSpec

    with Console(as_json=as_json, quiet=quiet) as console:
        outcome = maintenance.verify(
            export,
            base=base,
            specs=[AdapterSpec(**parse_adapter(text)) for text in adapters],
            dataset=dataset,
            seed=seed,
            allow_no_effect=allow_no_effect,
            progress=console,
        )
        console.finish(describe(outcome), render(outcome))
    return outcome.exit_code(strict=strict)
