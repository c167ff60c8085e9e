"""The help of every command as one text, 80 columns wide.

Write the golden text again: python -m tests.cli.golden_help
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from lora_export.cli import COMMANDS, cli

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GOLDEN", "WIDTH", "helps"]

GOLDEN: Final = Path(__file__).with_name("golden") / "help.txt"
WIDTH: Final = 80


def helps() -> dict[str, str]:
    """Return the help of each command, by its words."""
    return {
        context.command_path: context.get_help()
        for context in _contexts(
            click.Context(
                cli, info_name="lora-export", terminal_width=WIDTH, max_content_width=WIDTH,
                help_option_names=["-h", "--help"],
            )
        )
    }  # fmt: skip


def text() -> str:
    """Return the golden text."""
    return "\n".join(f"$ {name} --help\n{each}\n" for name, each in helps().items())


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """Yield the context of a command, and of those below it."""
    yield context
    group = context.command
    if isinstance(group, click.Group):
        for name in COMMANDS if group is cli else group.commands:
            command = group.get_command(context, name)
            assert command is not None
            yield from _contexts(
                click.Context(
                    command, parent=context, info_name=name,
                    terminal_width=WIDTH, max_content_width=WIDTH,
                )
            )  # fmt: skip


if __name__ == "__main__":
    GOLDEN.write_text(text(), "utf-8")
