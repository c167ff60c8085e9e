"""Options that commands share, progress on stderr, and the one result on stdout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.terminal import answer, answer_json, say
from lora_export.cli.text import size
from lora_export.core.adapter_names import split_adapter
from lora_export.core.errors import UsageError
from lora_export.ondevice.printable import printable_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

__all__ = [
    "SEED",
    "Console",
    "adapter_options",
    "combine_options",
    "combine_table",
    "common_options",
    "of_adapters",
    "parse_adapter",
    "parse_scales",
]

SEED: Final = click.IntRange(0, (1 << 63) - 1)
"""Seeds that NumPy accepts."""

_BAR: Final = 80
"""The largest number of characters of a description in front of the progress bar."""

_MARKS = {"true": True, "false": False, "1": True, "0": False}


class Console:
    """Progress for people: a bar on a terminal, plain lines otherwise; silent with ``--quiet``."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._terminal = sys.stderr.isatty()

    def start(self, what: str, total_bytes: int | None = None) -> None:
        """Begin a stage."""
        if self._quiet:
            return
        if not self._terminal:
            suffix = f" ({size(total_bytes)})" if total_bytes else ""
            say(f"{what}{suffix}")
            return
        self._start_bar()
        if self._task is not None:
            self._bar.update(self._task, completed=1, total=1)
        self._task = self._bar.add_task(printable_line(what, _BAR), total=total_bytes)

    def advance(self, count_bytes: int) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count_bytes)

    def note(self, text: str) -> None:
        """Print a line on stderr, whatever the settings."""
        if self._bar is not None:
            line = printable_line(text)
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            say(text)

    def finish(self, document: dict[str, Any], lines: list[str]) -> None:
        """Print the result: `document` with ``--json``, else `lines`, each as one line."""
        self.close()
        if self.as_json:
            answer_json(document)
        else:
            answer(lines)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def __enter__(self) -> Self:
        """Return the console."""
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the terminal."""
        self.close()

    def _start_bar(self) -> None:
        if self._bar is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
                # This stream also while the exporter's is silenced; the bar moves the cursor.
                console=RichConsole(file=getattr(sys.stderr, "unprotected", sys.stderr)),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar.start()


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that every command has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
        click.option("--quiet", is_flag=True, help="Print no progress."),
        click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks."),
    ):
        command = option(command)
    return command


def adapter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say how adapters are read; see `of_adapters`."""
    for option in reversed(
        (
            click.option("--adapter-format", metavar="FORMAT",
                         help="peft, loralib, kohya, mlx, gguf or torchtune; detected by default."),
            click.option("--alpha", type=float,
                         help="The alpha of an adapter whose format does not record it."),
            click.option("--enable-lora", metavar="BOOL,…",
                         help="The blocks that loralib's MergedLinear adapts: true,false,true."),
            click.option("--subfolder", metavar="NAME",
                         help="The folder inside the adapter's path or repository that holds "
                              "the adapter."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def of_adapters(
    adapter_format: str | None,
    alpha: float | None,
    enable_lora: str | None,
    subfolder: str | None = None,
) -> dict[str, Any]:
    """Return the flags that `adapter_options` added and that were given, as recipe keys.

    Raises:
        UsageError: ``--enable-lora`` is no list of true and false.
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
    for option in reversed(
        (
            click.option("--scale", "scales", multiple=True, metavar="[NAME=]FACTOR",
                         help="Multiply the updates of one adapter, or of all; repeatable."),
            click.option("--combine", metavar="METHOD",
                         help="Combine all adapters into one: linear, cat, svd, ties, "
                              "dare_linear, dare_ties, magnitude_prune, or these with _svd."),
            click.option("--combine-weights", metavar="W,W,…",
                         help="One factor per adapter; 1 by default."),
            click.option("--combine-density", type=float, help="The share of entries to keep."),
            click.option("--combine-rank", type=int, help="The rank of the result, for svd."),
            click.option("--combine-name",
                         help="The name of the result; by default the names joined by -."),
            click.option("--head-from", metavar="NAME",
                         help="With --combine: take the head, labels and tokenizer of this "
                              "adapter."),
            click.option("--combine-sign", help="How ties elects signs: total or frequency."),
            click.option("--seed", type=SEED, help="The seed of dare's random choices."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def combine_table(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of `combine_options` that were given, as keys of the recipe's section.

    Raises:
        click.UsageError: The weights are no numbers.
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
        click.UsageError: A factor is no number.
    """
    rows = [text.rpartition("=") for text in texts]
    return {name: _number("--scale", factor) for name, _, factor in rows}


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        msg = f"{flag}: {text!r} is not a number"
        raise click.UsageError(msg) from error
