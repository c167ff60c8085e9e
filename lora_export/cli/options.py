"""Options that commands share, and the keys of a recipe that they set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.help_format import option
from lora_export.cli.words import ADAPTER_FORMAT, COMBINE_METHOD
from lora_export.core.adapter_names import split_adapter
from lora_export.core.errors import UsageError
from lora_export.core.quantization import ALL_INPUTS, BLOCK_SIZES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

__all__ = [
    "BLOCK_SIZE",
    "SEED",
    "adapter_keys",
    "adapter_options",
    "as_rank_option",
    "base_option",
    "block_size_of",
    "combine_options",
    "combine_table",
    "common_options",
    "labels_option",
    "loss_options",
    "out_option",
    "override_option",
    "parse_adapter",
    "parse_scales",
]

BLOCK_SIZE: Final = click.Choice([*map(str, BLOCK_SIZES), ALL_INPUTS])
"""The numbers of inputs of quantized weights that may share a scale."""
SEED: Final = click.IntRange(0, (1 << 63) - 1)
"""Seeds that NumPy accepts."""

_MARKS = {"true": True, "false": False, "1": True, "0": False}


def block_size_of(text: str | None) -> int | str | None:
    """Return a block size as a recipe has it: a number, or ``all``."""
    return text if text is None or text == ALL_INPUTS else int(text)


def base_option(explanation: str, *, section: str = "Input", **settings: Any) -> Decorator:
    """Return the decorator that adds ``--base``, which is also called ``--model``."""
    return option(
        "--base", "--model", "base", section=section, metavar="PATH_OR_ID", help=explanation,
        **settings,
    )  # fmt: skip


def override_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--base-override``."""
    return option(
        "--base-override", section="Input", metavar="PATH_OR_ID",
        help="The original of a base that is stored quantized: its weights are used instead.",
    )(command)  # fmt: skip


def out_option(explanation: str, **settings: Any) -> Decorator:
    """Return the decorator that adds ``--out``, which is also called ``-o`` and ``--output``."""
    return option(
        "-o", "--out", "--output", "output", section="Output", help=explanation,
        **{"metavar": "PATH", **settings},
    )  # fmt: skip


def labels_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--labels``."""
    return option(
        "--labels", section="Graph", metavar="NAME,…",
        help="Names of the classes, separated by commas.",
        default_text="those of the adapter or the base",
    )(command)  # fmt: skip


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that every command has."""
    for add in (
        option("--debug", section="General", is_flag=True, expose_value=False,
               help="Show the traceback of an error."),
        option("--quiet", section="General", is_flag=True, help="Print no progress."),
        option("--json", "as_json", section="General", is_flag=True,
               help="Print the result as one JSON document on stdout."),
    ):  # fmt: skip
        command = add(command)
    return command


def adapter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say how adapters are read; see `adapter_keys`."""
    for add in reversed(
        (
            option("--adapter-format", section="Adapters", type=ADAPTER_FORMAT, metavar="FORMAT",
                   help="The format of the adapter files.", default_text="detected"),
            option("--alpha", section="Adapters", type=float,
                   help="The alpha of an adapter whose format does not record it."),
            option("--enable-lora", section="Adapters", metavar="BOOL,…",
                   help="The blocks that loralib's MergedLinear adapts, such as true,false,true."),
            option("--subfolder", section="Adapters", metavar="NAME",
                   help="The folder of the adapter inside its path or repository."),
        )
    ):  # fmt: skip
        command = add(command)
    return command


def adapter_keys(
    adapter_format: str | None,
    alpha: float | None,
    enable_lora: str | None,
    subfolder: str | None = None,
) -> dict[str, Any]:
    """Return the flags that `adapter_options` added and that were given, as recipe keys.

    Raises:
        UsageError: ``--enable-lora`` is not a list of true and false.
    """
    marks = None
    if enable_lora is not None:
        words = [word.strip().lower() for word in enable_lora.split(",")]
        unknown = next((word for word in words if word not in _MARKS), None)
        if unknown is not None:
            msg = f"--enable-lora {enable_lora!r} has {unknown!r}, which is neither true nor false"
            raise UsageError(msg, hint="For q and v of three blocks: --enable-lora true,false,true")
        marks = [_MARKS[word] for word in words]
    given = {
        "format": adapter_format,
        "alpha": alpha,
        "enable_lora": marks,
        "subfolder": subfolder,
    }
    return {key: value for key, value in given.items() if value is not None}


def parse_adapter(text: str) -> dict[str, Any]:
    """Return ``[NAME=]PATH`` as keys of the recipe; see `split_adapter`."""
    name, source = split_adapter(text)
    return {"source": source} if name is None else {"name": name, "source": source}


def combine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that scale adapters and combine them into one."""
    for add in reversed(
        (
            option("--scale", "scales", section="Adapters", multiple=True,
                   metavar="[NAME=]FACTOR",
                   help="Multiply the updates of one adapter, or of all."),
            option("--combine", section="Combining adapters", type=COMBINE_METHOD,
                   metavar="METHOD", help="Combine all adapters into one."),
            option("--combine-weights", section="Combining adapters", metavar="W,W,…",
                   help="One factor for each adapter.", default_text="1"),
            option("--combine-density", section="Combining adapters", type=float,
                   help="The share of entries that ties, dare and magnitude_prune keep."),
            option("--combine-rank", section="Combining adapters", type=int,
                   help="The rank of the result of svd methods."),
            option("--combine-name", section="Combining adapters", metavar="NAME",
                   help="The name of the result.", default_text="the names joined by -"),
            option("--head-from", section="Combining adapters", metavar="NAME",
                   help="Use the head, labels and tokenizer of this adapter."),
            option("--combine-sign", section="Combining adapters",
                   type=click.Choice(["total", "frequency"]),
                   help="How ties chooses the sign of an entry.", default_text="total"),
            option("--seed", section="Combining adapters", type=SEED,
                   help="The seed of dare's random choices.", default_text="0"),
        )
    ):  # fmt: skip
        command = add(command)
    return command


def as_rank_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the rank of LoRA that is made of adapters of other methods."""
    return option(
        "--as-rank", "as_rank", section="Adapters", type=click.IntRange(min=1), metavar="R",
        help="Swappable and batched: hold adapters of other methods than LoRA as their best LoRA "
             "of this rank; the loss is reported.",
    )(command)  # fmt: skip


def combine_table(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of `combine_options` that were given, as keys of the recipe's section.

    Raises:
        click.UsageError: The weights are not numbers.
    """
    keys = {
        "combine": "method",
        "combine_density": "density",
        "combine_rank": "rank",
        "combine_name": "name",
        "combine_sign": "majority_sign_method",
        "head_from": "head_from",
        "seed": "seed",
    }
    table = {key: flags[flag] for flag, key in keys.items() if flags[flag] is not None}
    if flags["combine_weights"] is not None:
        parts = flags["combine_weights"].split(",")
        table["weights"] = [_number("--combine-weights", part) for part in parts]
    return table


def parse_scales(texts: Sequence[str]) -> dict[str, float]:
    """Return the factor of each adapter by name; ``""`` stands for all others.

    Raises:
        click.UsageError: A factor is not a number.
    """
    rows = [text.rpartition("=") for text in texts]
    return {name: _number("--scale", factor) for name, _, factor in rows}


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        msg = f"{flag}: {text!r} is not a number"
        raise click.UsageError(msg) from error


def loss_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the limits of what quantization may cost."""
    for add in (
        option("--max-metric-drop", section="Gate", type=float, metavar="DROP",
               help="Quantized graphs: the largest loss of the score on the data set (0.01: one "
                    "point of accuracy; for perplexity: one percent)."),
        option("--max-loss", section="Gate", type=float, metavar="ERROR",
               help="Quantized graphs: the largest relative L2 error of the outputs."),
        option("--min-gain", section="Gate", type=float, metavar="SHARE",
               help="Quantized graphs: the smallest share of its effect that an adapter must "
                    "keep.", default_text="0.8"),
    ):  # fmt: skip
        command = add(command)
    return command
