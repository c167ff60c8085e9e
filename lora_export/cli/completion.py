"""Shell completion: the script for a shell, and the words that complete a line.

The shell sets ``_LORA_EXPORT_COMPLETE``; see docs/shell-completion.md.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from lora_export.cli.terminal import answer
from lora_export.ondevice.printable import FinishedLine

if TYPE_CHECKING:
    import click

__all__ = ["completed"]

_VARIABLE: Final = "_LORA_EXPORT_COMPLETE"


def completed(program: click.Command, name: str) -> int | None:
    """Answer a shell that asks for completion; return the exit code, or None if none asks.

    Args:
        program: The command to complete.
        name: The name of the program.
    """
    asked = os.environ.get(_VARIABLE)
    if not asked:
        return None
    from click.shell_completion import get_completion_class

    shell, _, instruction = asked.partition("_")
    kind = get_completion_class(shell)
    if kind is None or instruction not in {"source", "complete"}:
        return 1
    completion = kind(program, {}, name, _VARIABLE)
    if instruction == "source":
        answer(FinishedLine(line) for line in completion.source().split("\n"))
    elif found := completion.complete():
        answer(found.split("\n"))
    return 0
