"""``merge-and-build`` and ``export``: the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from lora_export.cli.loss_options import loss_options
from lora_export.cli.outcome import describe, render
from lora_export.core.modes import ADAPTER_MODES
from lora_export.core.quantization import BLOCK_SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["export", "merge_and_build"]


def _build_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a recipe can say, as flags; a flag wins over the recipe."""
    for option in reversed(
        (
            click.argument("recipe", required=False, type=click.Path(path_type=Path)),
            click.option("--base", help="Base checkpoint: a directory."),
            click.option("--graph", help="An ONNX file of the base, by any exporter."),
            click.option("--adapter", "adapters", multiple=True, metavar="[NAME=]PATH",
                         help="A LoRA adapter; repeatable."),
            click.option("--mode", type=click.Choice([each.value for each in ADAPTER_MODES]),
                         help="A graph for each adapter, one that takes any, or one with all "
                              "and a row of each."),
            click.option("--lora-modules", metavar="NAME,...",
                         help="Modules that a swappable graph can adapt; the adapters' own."),
            click.option("--task", help="Task name as in transformers pipelines."),
            click.option("--labels", help="Names of the classes, separated by commas."),
            click.option("--dtype", help="float32, float16 or bfloat16; the checkpoint's own."),
            click.option("--quantize", type=click.Choice(["int4", "int8"]),
                         help="Store the weights of products in four or eight bits; adapters of "
                              "swappable and batched exports stay as they are."),
            click.option("--quantize-block-size", metavar="SIZE",
                         type=click.Choice([str(each) for each in BLOCK_SIZES]),
                         help="How many inputs share a scale; 32 for int4, all for int8."),
            click.option("--quantize-keep", multiple=True, metavar="PATTERN",
                         help="Leave modules that fit as they are; repeatable."),
            click.option("--opset", type=int, help="ONNX opset; the target's own."),
            click.option("--cache/--no-cache", "cache", default=None,
                         help="Keys and values as inputs and outputs of a decoder; on."),
            click.option("--cache-length", type=int, metavar="POSITIONS",
                         help="A static cache of so many positions, updated in place, in place "
                              "of one that grows."),
            click.option("--logits", type=click.Choice(["all", "last"]),
                         help="Logits of all positions of a decoder, or of the last; all."),
            click.option("--target", "targets", multiple=True, help="Where the graph will run."),
            click.option("--drop", multiple=True, metavar="PATTERN",
                         help="Leave out adapter tensors that the task does not use."),
            click.option("--out", "--output", "output", help="The export directory."),
        )
    ):  # fmt: skip
        command = option(command)
    return adapter_options(command)


@click.command("merge-and-build")
@_build_options
@combine_options
@click.option("--verify/--no-verify", default=None, help="Prove parity and measure latency.")
@click.option(
    "--latency/--no-latency", default=None, help="Measure latency; by default of merged graphs."
)
@click.option("--max-ratio", type=float, help="Largest latency ratio to the base.")
@click.option("--allow-no-effect", is_flag=True, help="Accept an adapter without any effect.")
@loss_options
@click.option(
    "--strict",
    is_flag=True,
    help="Fail if an adapter is ambiguous or unverified, or names a different base.",
)
@click.option("--bundle", metavar="FILE", help="The bundle for the target; beside the export.")
@click.option("--no-bundle", is_flag=True, help="Make no bundle.")
@common_options
def merge_and_build(
    *,
    as_json: bool,
    quiet: bool,
    verify: bool | None,
    latency: bool | None,
    max_ratio: float | None,
    allow_no_effect: bool,
    min_gain: float | None,
    max_loss: float | None,
    max_metric_drop: float | None,
    strict: bool,
    bundle: str | None,
    no_bundle: bool,
    **flags: Any,
) -> int:
    """Merge adapters into a base, export ONNX, verify, measure.

    RECIPE is a YAML file; without one, give --base, --adapter and --out.
    """
    overrides: dict[str, Any] = {}
    if verify is not None:
        overrides["verify"] = {"enabled": verify}
        overrides["latency"] = {"enabled": verify}
    if allow_no_effect:
        overrides["verify"] = {**overrides.get("verify", {}), "allow_no_effect": True}
    limits = {"min_gain": min_gain, "max_loss": max_loss, "max_metric_drop": max_metric_drop}
    if given := {key: limit for key, limit in limits.items() if limit is not None}:
        overrides["verify"] = {**overrides.get("verify", {}), **given}
    if latency is not None:
        overrides["latency"] = {"enabled": latency}
    if max_ratio is not None:
        overrides["latency"] = {**overrides.get("latency", {}), "max_ratio": max_ratio}
    if bundle is not None:
        overrides["bundle"] = {"file": str(Path(bundle).absolute())}
    if no_bundle:
        overrides["bundle"] = {"enabled": False}
    return _build(flags, overrides, as_json=as_json, quiet=quiet, strict=strict)


@click.command("export")
@_build_options
@combine_options
@common_options
def export(*, as_json: bool, quiet: bool, **flags: Any) -> int:
    """Merge and export without verification; see merge-and-build."""
    disabled = {key: {"enabled": False} for key in ("verify", "latency", "bundle")}
    return _build(flags, disabled, as_json=as_json, quiet=quiet, strict=False)


def _build(
    flags: dict[str, Any], overrides: dict[str, Any], *, as_json: bool, quiet: bool, strict: bool
) -> int:
    from lora_export.commands import build
    from lora_export.commands.recipe import load_recipe, recipe_from_flags

    recipe_path: Path | None = flags["recipe"]
    table = {**overrides, **_flag_table(flags, absolute=recipe_path is not None)}
    recipe = load_recipe(recipe_path, table) if recipe_path else recipe_from_flags(table)
    with Console(as_json=as_json, quiet=quiet) as console:
        outcome = build.merge_and_build(recipe, console, strict=strict)
        console.finish(describe(outcome), render(outcome))
    return outcome.exit_code(strict=strict)


def _flag_table(flags: dict[str, Any], *, absolute: bool) -> dict[str, Any]:
    """Return the flags that were given, as recipe keys; paths mean the working directory."""
    from lora_export.core.files import user_path
    from lora_export.core.hub import is_hub_id

    def located(text: str) -> str:
        path = user_path(text)
        return str(path.absolute()) if absolute and (path.exists() or not is_hub_id(text)) else text

    table = {
        key: flags[key]
        for key in ("task", "mode", "dtype", "opset", "cache", "cache_length", "logits")
        if flags[key] is not None
    }
    for key in ("base", "graph", "output"):
        if flags[key] is not None:
            table[key] = located(flags[key])
    if quantize := _quantize_table(flags):
        table["quantize"] = quantize
    if flags["labels"]:
        table["labels"] = [label.strip() for label in flags["labels"].split(",")]
    if flags["lora_modules"]:
        table["lora_modules"] = [name.strip() for name in flags["lora_modules"].split(",")]
    if flags["targets"]:
        table["targets"] = list(flags["targets"])
    lists = {
        "combine": combine_table(flags),
        "scale": parse_scales(flags["scales"]),
        "drop": list(flags["drop"]),
    }
    table |= {key: value for key, value in lists.items() if value}
    table |= of_adapters(
        flags["adapter_format"], flags["alpha"], flags["enable_lora"], flags["subfolder"]
    )
    if flags["adapters"]:
        rows = [parse_adapter(text) for text in flags["adapters"]]
        table["adapters"] = [{**row, "source": located(row["source"])} for row in rows]
    return table


def _quantize_table(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the section ``quantize`` that flags describe."""
    table = {
        "weights": flags["quantize"],
        "block_size": int(flags["quantize_block_size"]) if flags["quantize_block_size"] else None,
        "keep": list(flags["quantize_keep"]),
    }
    return {key: value for key, value in table.items() if value}
