"""``merge-and-build`` and ``export``: the commands."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import (
    BLOCK_SIZE,
    adapter_keys,
    adapter_options,
    as_rank_option,
    base_option,
    block_size_of,
    combine_options,
    combine_table,
    common_options,
    labels_option,
    loss_options,
    out_option,
    override_option,
    parse_adapter,
    parse_scales,
)
from lora_export.cli.outcome import describe, render
from lora_export.cli.words import DTYPE, TARGET, TASK
from lora_export.core.graph_forms import DEFAULT_FORM, GRAPH_FORMS
from lora_export.core.modes import ADAPTER_MODES
from lora_export.core.quantization import METHOD_NAMES, SCHEMES
from lora_export.core.setting_names import naming_keys
from lora_export.core.targets import DEFAULT_TARGET

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["export", "merge_and_build"]


_EXAMPLES: Final = """
# Merge an adapter, export, compare with PEFT, measure the latency
lora-export merge-and-build --base ./base --adapter ./adapter -o out

# One graph that takes any of several adapters
lora-export merge-and-build --base ./base --adapter a=./a --adapter b=./b \\
    --mode swappable -o out

# The settings of a file; flags win over the file
lora-export merge-and-build recipe.yaml --target jetson-orin
"""
_KEYS: Final = (
    "task", "mode", "dtype", "opset", "graph_form", "cache", "cache_length", "logits",
)  # fmt: skip
"""Flags whose values are those of the recipe's keys of the same names."""
_EXPORT_EXAMPLES: Final = """
lora-export export --base ./base --adapter ./adapter -o out

# The base alone; adapters can be added later
lora-export export --base ./base -o out
"""


def _input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the checkpoint, the adapters and what is read of them."""
    for add in reversed(
        (
            argument("recipe", "A YAML file with these settings, instead of flags.",
                     required=False, type=click.Path(path_type=Path)),
            base_option("The base checkpoint: a directory or a hub id."),
            override_option,
            option("--graph", section="Input", metavar="FILE",
                   help="An ONNX file of the base, by any exporter.", default_text="traced"),
            option("--adapter", "adapters", section="Adapters", multiple=True,
                   metavar="[NAME=]PATH_OR_ID", help="A LoRA adapter: a directory or a hub id."),
            option("--drop", section="Adapters", multiple=True, metavar="PATTERN",
                   help="Leave out adapter tensors whose names match."),
            as_rank_option,
        )
    ):  # fmt: skip
        command = add(command)
    return command


def _graph_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the properties of the graph, and where it is written."""
    for add in reversed(
        (
            option("--mode", section="Graph", default_text="merged",
                   type=click.Choice([each.value for each in ADAPTER_MODES]),
                   help="merged: a graph for each adapter. swappable: one graph that takes any "
                        "adapter. batched: one graph with an adapter for each row of a batch."),
            option("--lora-modules", section="Graph", metavar="NAME,…",
                   help="The modules that a swappable graph can adapt.",
                   default_text="those of the adapters"),
            option("--task", section="Graph", type=TASK,
                   help="The task.", default_text="that of the adapter or the base"),
            labels_option,
            option("--dtype", "--precision", "dtype", section="Graph", type=DTYPE,
                   help="The dtype of the weights.", default_text="that of the checkpoint"),
            option("--target", "targets", section="Graph", type=TARGET, multiple=True,
                   metavar="TARGET", help="Where the graph will run.", default_text=DEFAULT_TARGET),
            option("--opset", section="Graph", type=int, help="The ONNX opset.",
                   default_text="that of the target"),
            option("--graph-form", section="Graph", type=click.Choice(GRAPH_FORMS),
                   help="Decoders: ort uses ONNX Runtime's own operators, which are faster there "
                        "and run nowhere else.", default_text=DEFAULT_FORM),
            option("--cache/--no-cache", "cache", section="Graph", default=None,
                   help="Decoders: keys and values are inputs and outputs of the graph.",
                   default_text="--cache"),
            option("--cache-length", section="Graph", type=int, metavar="POSITIONS",
                   help="Decoders: a static cache of this length, updated in place.",
                   default_text="a cache that grows"),
            option("--logits", section="Graph", type=click.Choice(["all", "last"]),
                   help="Decoders: logits of all positions, or of the last.",
                   default_text="all"),
            option("--quantize", section="Quantization", type=click.Choice(SCHEMES),
                   help="Store the weights of matrix products in 4 or 8 bits. Adapters of "
                        "swappable and batched exports stay as they are. nf4 and fp4 keep what "
                        "bitsandbytes stored; they are for --graph-form ort.", default_text="no"),
            option("--quantize-block-size", section="Quantization", metavar="SIZE",
                   type=BLOCK_SIZE,
                   help="The number of inputs that share a scale; all is one for each output.",
                   default_text="that of the base, 32, 64 for nf4; for int8 256, all for TensorRT"),
            option("--quantize-method", section="Quantization", type=click.Choice(METHOD_NAMES),
                   help="How integers are found. gptq loses least: it runs the model on sentences "
                        "of the package. signed is not for TensorRT.", default_text="search"),
            option("--quantize-keep", section="Quantization", multiple=True, metavar="PATTERN",
                   help="Leave modules whose names match in float."),
            out_option("The export directory.", metavar="DIR"),
        )
    ):  # fmt: skip
        command = add(command)
    return command


def _build_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add everything that a recipe can say, as flags; a flag wins over the recipe."""
    return _input_options(adapter_options(combine_options(_graph_options(command))))


@click.command("merge-and-build", cls=Command, examples=_EXAMPLES)
@_build_options
@option("--verify/--no-verify", section="Verification", default=None,
        help="Compare with PEFT and measure latency.", default_text="--verify")  # fmt: skip
@option("--allow-no-effect", section="Verification", is_flag=True,
        help="Accept an adapter that changes nothing measurable.")  # fmt: skip
@option("--latency/--no-latency", section="Measurement", default=None,
        help="Measure latency.", default_text="--latency in mode merged")  # fmt: skip
@option("--max-ratio", section="Gate", type=float, metavar="RATIO",
        help="The largest latency ratio to the base.", default_text="1.05")  # fmt: skip
@loss_options
@option("--strict", section="Gate", is_flag=True,
        help="Fail if an adapter is ambiguous or unverified, or names a different "
             "base.")  # fmt: skip
@option("--bundle", section="Output", metavar="FILE",
        help="The bundle for a device.", default_text="beside the export")  # fmt: skip
@option("--no-bundle", section="Output", is_flag=True, help="Write no bundle.")
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
    """Merge adapters into a base, export it to ONNX, verify the result and measure it.

    Without --adapter the base alone is exported. An existing export of the same base
    receives the adapters.
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


@click.command("export", cls=Command, examples=_EXPORT_EXAMPLES)
@_build_options
@common_options
def export(*, as_json: bool, quiet: bool, **flags: Any) -> int:
    """Merge adapters into a base and export it to ONNX, without verification."""
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
    with (
        naming_keys() if recipe_path else contextlib.nullcontext(),
        Console(as_json=as_json, quiet=quiet) as console,
    ):
        if not recipe.adapters:
            console.remark("no adapter is given: the base alone is exported")
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

    table = {key: flags[key] for key in _KEYS if flags[key] is not None}
    for key in ("base", "base_override"):
        if flags[key] is not None:
            table[key] = located(flags[key])
    for key in ("graph", "output"):  # never ids of the hub
        if flags[key] is not None:
            path = user_path(flags[key])
            table[key] = str(path.absolute()) if absolute else flags[key]
    if quantize := _quantize_table(flags):
        table["quantize"] = quantize
    table |= _lists(flags)
    if flags["as_rank"] is not None:
        table["as_rank"] = flags["as_rank"]
    table |= adapter_keys(
        flags["adapter_format"], flags["alpha"], flags["enable_lora"], flags["subfolder"]
    )
    if flags["adapters"]:
        rows = [parse_adapter(text) for text in flags["adapters"]]
        table["adapters"] = [{**row, "source": located(row["source"])} for row in rows]
    return table


def _lists(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags whose values are lists or tables, as recipe keys."""
    lists = {
        "labels": _names(flags["labels"]),
        "lora_modules": _names(flags["lora_modules"]),
        "targets": list(flags["targets"]),
        "combine": combine_table(flags),
        "scale": parse_scales(flags["scales"]),
        "drop": list(flags["drop"]),
    }
    return {key: value for key, value in lists.items() if value}


def _names(text: str | None) -> list[str]:
    """Return the names of a list with commas."""
    return [name.strip() for name in text.split(",")] if text else []


def _quantize_table(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the section ``quantize`` that flags describe."""
    table = {
        "weights": flags["quantize"],
        "block_size": block_size_of(flags["quantize_block_size"]),
        "method": flags["quantize_method"],
        "keep": list(flags["quantize_keep"]),
    }
    return {key: value for key, value in table.items() if value}
