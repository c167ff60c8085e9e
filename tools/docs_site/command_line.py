"""The reference of the command line, written from the help of every command."""

from __future__ import annotations

import contextlib
import re
import textwrap
from typing import TYPE_CHECKING, Final

import click

from lora_export.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["command_line"]

_WIDE: Final = 10_000
_FLAG: Final = re.compile(r"--?[a-z][\w-]*")


class _Markdown(click.HelpFormatter):
    """Collects a command's help as Markdown: what a terminal shows in columns becomes lists."""

    def __init__(self) -> None:
        super().__init__(width=_WIDE, max_width=_WIDE)

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:  # noqa: ARG002
        self.write(f"```text\n{prog} {args}".rstrip() + "\n```\n\n")

    def write_heading(self, heading: str) -> None:
        self.write(f"**{heading}**\n\n")

    def write_text(self, text: str) -> None:
        paragraphs = re.split(r"\n\s*\n", text.strip())
        for each in paragraphs:
            if each.lstrip().startswith("\b"):
                lines = each.replace("\b", "").strip("\n")
                self.write(f"```text\n{lines}\n```\n\n")
            else:
                self.write(f"{_escaped(' '.join(each.split()))}\n\n")

    def write_dl(
        self,
        rows: Iterable[tuple[str, str]],
        col_max: int = 30,  # noqa: ARG002  (click's signature)
        col_spacing: int = 2,  # noqa: ARG002
    ) -> None:
        for name, text in rows:
            self.write(f"- `{name.strip()}`" + (f": {_escaped(text)}" if text else "") + "\n")
        self.write("\n")

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Write a section; lines that its writer lays out itself, examples, are code."""
        self.write_heading(name)
        start = len(self.buffer)
        yield
        body = "".join(self.buffer[start:])
        if body.strip() and not body.lstrip().startswith(("- ", "```", "**")):
            lines = textwrap.dedent(body).strip("\n")
            self.buffer[start:] = [f"```sh\n{lines}\n```\n\n"]


def _escaped(text: str) -> str:
    """Return a sentence of the help for Markdown: flags as code, nothing as markup."""
    plain = re.sub(r"([\\`*_<\[\]])", r"\\\1", text)
    return _FLAG.sub(lambda flag: f"`{flag[0]}`", plain)


def command_line() -> str:
    """Return the page: the program, then every command with its arguments and options."""
    context = click.Context(cli, info_name="lora-export")
    parts = [_help(cli, context)]
    for name in cli.list_commands(context):
        parts += _command(name, cli, context, level=2)
    return "\n".join(parts)


def _command(name: str, group: click.Group, parent: click.Context, *, level: int) -> Iterator[str]:
    command = group.get_command(parent, name)
    assert command is not None  # noqa: S101  (the group listed it)
    context = click.Context(command, info_name=name, parent=parent)
    title = context.command_path.removeprefix("lora-export ")
    yield f"{'#' * level} {title}\n"
    yield _help(command, context)
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            yield from _command(each, command, context, level=level + 1)


def _help(command: click.Command, context: click.Context) -> str:
    formatter = _Markdown()
    command.format_help(context, formatter)
    return formatter.getvalue()
