"""The command line: only this package imports click, and a command is imported when it runs."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Final

import click

from lora_export.cli.completion import completed
from lora_export.cli.help_format import Group, Option
from lora_export.cli.terminal import answer_json, say
from lora_export.core.errors import LoraExportError
from lora_export.core.setting_names import with_flags
from lora_export.core.suggestions import nearest
from lora_export.core.version import VERSION
from lora_export.ondevice.printable import HINT_LIMIT, LINE_LIMIT, printable

if TYPE_CHECKING:
    from types import FrameType

    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "COMMAND_SECTIONS", "INTERRUPTED", "cli", "run"]

COMMAND_SECTIONS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "Export": {
        "merge-and-build": (
            "merge_and_build:merge_and_build",
            "Merge adapters into a base, export to ONNX and verify.",
        ),
        "export": ("merge_and_build:export", "The same without verification."),
        "add": ("add:add", "Add adapters to an export, without torch."),
        "remove": ("remove:remove", "Remove an adapter from an export."),
        "quantize": ("quantize:quantize", "Write a quantized copy of an export."),
        "merge": ("merge:merge", "Merge an adapter into a Hugging Face checkpoint, without torch."),
    },
    "Check": {
        "verify": ("verify:verify", "Verify an export again, or on your own data."),
        "inspect": ("inspect:inspect", "Show the contents of a checkpoint, adapter or export."),
        "report": ("report:report", "Write the report of an export as a page."),
        "bench": ("bench:bench", "Time the graphs of an export side by side."),
        "generate": ("generate:generate", "Generate text with an export."),
        "analyze": ("analyze:analyze", "Show what an adapter learned, or make it smaller."),
    },
    "Deploy": {
        "bundle": ("bundle:bundle", "Pack an export for a device."),
        "preflight": ("preflight:preflight", "Predict whether TensorRT can build an export."),
        "build": ("engines:build", "Build TensorRT engines of an export."),
        "refit": ("engines:refit", "Make an adapter's engine from that of the base."),
        "layout": ("layout:layout", "Write an export as a directory that another runtime opens."),
        "triton": ("triton:triton", "Write a model repository for Triton Inference Server."),
        "fleet": ("fleet:fleet", "Build many adapters for many targets by one plan."),
    },
    "Other": {
        "adapter": ("adapter:adapter", "Convert an adapter to another format."),
        "doctor": ("doctor:doctor", "Show what is installed, and what is missing."),
    },
}
"""Each command, by section: its place in this package, and its line in ``--help``."""

COMMANDS: Final = {name: row for rows in COMMAND_SECTIONS.values() for name, row in rows.items()}

INTERRUPTED: Final = 130
_TERMINATED: Final = 143

_NO_ARGUMENTS: Final[tuple[type[click.ClickException], ...]] = (
    (click.exceptions.NoArgsIsHelpError,) if hasattr(click.exceptions, "NoArgsIsHelpError") else ()
)
"""The error that click 8.2 and newer raise for a group without arguments; its text is the help."""


class _LazyGroup(Group):
    """The group of the commands in the table, each of which is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command; return None where there is none of that name."""
        row = COMMANDS.get(cmd_name)
        if row is None:
            return None
        module, _, attribute = row[0].partition(":")
        command = getattr(importlib.import_module(f"lora_export.cli.{module}"), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  (the table is ours)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names; suggest one for a misspelling."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = nearest(name, COMMANDS)
            suggestion = "" if near is None else f"; did you mean {near!r}?"
            msg = f"unknown command {name!r}{suggestion}"
            raise click.UsageError(msg, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands by section."""
        width = max(map(len, COMMANDS))
        for section, rows in COMMAND_SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(f"{name:{width}}", text) for name, (_, text) in rows.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin with `incomplete`, without importing them."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples="""
lora-export merge-and-build --base ./base --adapter ./adapter -o out
lora-export add out --adapter ./another
lora-export verify out --base ./base
""",
)
@click.version_option(VERSION, prog_name="lora-export", cls=Option)
def cli() -> None:
    """Ship LoRA adapters: ONNX graphs that provably compute base + adapter.

    Exit codes: 0 done, 2 usage, 3 bad input, 4 not supported, 5 parity failed,
    6 latency gate failed, 7 a needed runtime is missing, 1 a bug.
    """


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Errors become one message on stderr."""
    signals = _Signals()
    if (code := completed(cli, "lora-export")) is not None:
        return code
    try:
        result = cli.main(arguments, prog_name="lora-export", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (the last resort)
        if signals.code is not None:
            return _stopped(signals.code)
        return _failed(error, debug="--debug" in arguments, as_json="--json" in arguments)
    except SystemExit:
        if signals.code is None:
            raise
        return _stopped(signals.code)
    return result if isinstance(result, int) else 0


def _failed(error: Exception | KeyboardInterrupt, *, debug: bool, as_json: bool) -> int:
    """Report an error as one message; return the exit code."""
    if isinstance(error, _NO_ARGUMENTS):
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        hint = _how_to_use(getattr(error, "ctx", None))
        message = printable(_usage_message(error), LINE_LIMIT)
        _report("UsageError", message, hint, as_json=as_json)
        return error.exit_code
    if isinstance(error, click.Abort) and isinstance(error.__cause__, EOFError):
        error = error.__cause__  # click takes any for the end of what a user types; none is asked
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return _stopped(INTERRUPTED)
    if debug:
        traceback.print_exception(error)
    if isinstance(error, LoraExportError):
        kind, explained = type(error).__name__, error
    else:
        from lora_export.cli.unforeseen import explain

        kind, explained = explain(error)
    _report(kind, explained.message, explained.hint, as_json=as_json)
    return explained.exit_code


def _usage_message(error: click.ClickException) -> str:
    """Return what is wrong with the command line, in one line."""
    if isinstance(error, click.NoSuchOption):
        near = nearest(error.option_name, error.possibilities or ())
        suggestion = "" if near is None else f"; did you mean {near!r}?"
        return f"unknown option {error.option_name!r}{suggestion}"
    text = " ".join(error.format_message().split())
    return text[:1].lower() + text[1:].removesuffix(".")  # as our own messages are


class _Signals:
    """The handlers of Ctrl-C and SIGTERM: `code` is the exit code of the one that came, if any.

    Both leave through the ``finally`` blocks, so that staging folders are removed. A library that
    is being imported or called may turn the exception into an error of its own (NumPy's import
    makes it an `ImportError`); that the user asked to stop is then still known.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        with contextlib.suppress(ValueError):  # not in the main thread: no signal arrives here
            signal.signal(signal.SIGINT, self._interrupt)
            signal.signal(signal.SIGTERM, self._terminate)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.code = INTERRUPTED
        raise KeyboardInterrupt

    def _terminate(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.code = _TERMINATED
        sys.exit(_TERMINATED)


def _stopped(code: int) -> int:
    how = "terminated" if code == _TERMINATED else "interrupted"
    say(f"{how}; nothing half-written was left")
    return code


def _how_to_use(context: click.Context | None) -> str:
    """Return what the command takes, in a line, and where the rest is said."""
    if context is None:
        return "See: lora-export --help"
    usage = " ".join(context.get_usage().split())
    return f"{usage}\nSee: {context.command_path} --help"


def _report(kind: str, message: str, hint: str | None, *, as_json: bool) -> None:
    message, hint = with_flags(message), with_flags(hint) if hint else hint
    lines = [f"error: {message}", *([hint] if hint else [])]
    say(*(line for text in lines for line in text.split("\n")), limit=HINT_LIMIT)
    if as_json:
        answer_json({"error": {"kind": kind, "message": message, "hint": hint}})
