"""The options that limit what quantization may cost, of every command that verifies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["loss_options"]


def loss_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the limits of quantization loss to a command."""
    for option in (
        click.option("--max-metric-drop", type=float, metavar="DROP",
                     help="Quantized: the most that the score on the data set may lose "
                          "(0.01: one point of accuracy; of a perplexity, one percent)."),
        click.option("--max-loss", type=float, metavar="ERROR",
                     help="Quantized: the largest relative L2 error of the outputs."),
        click.option("--min-gain", type=float, metavar="SHARE",
                     help="Quantized: the share of its effect that an adapter has to keep; 0.8."),
    ):  # fmt: skip
        command = option(command)
    return command
