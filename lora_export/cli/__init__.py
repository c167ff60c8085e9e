"""The command line: only this package imports click, and a command is imported when it runs."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Final

import click

from lora_export.cli.terminal import answer_json, say
from lora_export.core.errors import LoraExportError
from lora_export.core.version import VERSION
from lora_export.ondevice.printable import HINT_LIMIT, LINE_LIMIT, printable

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["COMMANDS", "INTERRUPTED", "cli", "run"]

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "merge-and-build": (
        "merge_and_build:merge_and_build",
        "Merge, export and verify: the main job.",
    ),
    "merge": ("merge:merge", "Merge an adapter into a Hugging Face checkpoint, without torch."),
    "export": ("merge_and_build:export", "The same without verification."),
    "add": ("add:add", "Add an adapter to an existing export, without torch."),
    "quantize": ("quantize:quantize", "Write a quantized copy of an export."),
    "remove": ("remove:remove", "Take an adapter out of an export."),
    "verify": ("verify:verify", "Repeat the verification of an export."),
    "build": ("engines:build", "Build TensorRT engines of an export, on their device."),
    "refit": ("engines:refit", "Put an adapter into an engine that is built."),
    "bundle": ("bundle:bundle", "Pack an export for a device, with what checks it there."),
    "report": ("report:report", "Write what is known of an export as one page."),
    "bench": ("bench:bench", "Time an export's graphs side by side, and judge them."),
    "generate": ("generate:generate", "Continue a prompt with a decoder of an export."),
    "inspect": ("inspect:inspect", "Show what a checkpoint, an adapter or an export holds."),
    "preflight": ("preflight:preflight", "Say what TensorRT will make of an export, without it."),
    "adapter": ("adapter:adapter", "Convert an adapter to another format."),
    "analyze": (
        "analyze:analyze",
        "What an adapter learned; make it smaller; what one would cost.",
    ),
    "triton": ("triton:triton", "Write a model repository for the Triton server."),
    "doctor": ("doctor:doctor", "Show what is installed, and what each missing part costs."),
}
"""Each command: where it lives in this package, and its line in ``--help``."""

INTERRUPTED: Final = 130
_TERMINATED: Final = 143

_NO_ARGUMENTS: Final[tuple[type[click.ClickException], ...]] = (
    (click.exceptions.NoArgsIsHelpError,) if hasattr(click.exceptions, "NoArgsIsHelpError") else ()
)
"""The error that click 8.2 and newer raise for a group without arguments; its text is the help."""


class _LazyGroup(click.Group):
    """A group that knows its commands by a table and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        row = COMMANDS.get(cmd_name)
        if row is None:
            return None
        module, _, attribute = row[0].partition(":")
        command = getattr(importlib.import_module(f"lora_export.cli.{module}"), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  (the table is ours)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="lora-export")
def cli() -> None:
    """Ship LoRA adapters: ONNX graphs that provably compute base + adapter.

    Exit codes: 0 done, 2 usage, 3 bad input, 4 not supported, 5 parity failed,
    6 latency gate failed, 7 a needed runtime is missing, 1 a bug.
    """


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Errors become one message on stderr."""
    signals = _Signals()
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
        message = printable(" ".join(error.format_message().split()), LINE_LIMIT)
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
    lines = [f"error: {message}", *([hint] if hint else [])]
    say(*(line for text in lines for line in text.split("\n")), limit=HINT_LIMIT)
    if as_json:
        answer_json({"error": {"kind": kind, "message": message, "hint": hint}})
