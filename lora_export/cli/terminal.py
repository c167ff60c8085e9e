"""The two ways out of the command line: lines on stderr and the result on stdout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lora_export.ondevice.printable import LINE_LIMIT, json_text, printable_line

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["answer", "answer_json", "say"]


def say(*lines: str, limit: int = LINE_LIMIT) -> None:
    """Print lines on stderr, each escaped as one line (`printable_line`)."""
    for line in lines:
        sys.stderr.write(printable_line(line, limit))
        sys.stderr.write("\n")
    sys.stderr.flush()


def answer(lines: Iterable[str]) -> None:
    """Print lines on stdout, each escaped as one line (`printable_line`)."""
    for line in lines:
        sys.stdout.write(printable_line(line))
        sys.stdout.write("\n")
    sys.stdout.flush()


def answer_json(document: dict[str, Any]) -> None:
    """Print a JSON document on stdout."""
    sys.stdout.write(f"{json_text(document)}\n")
    sys.stdout.flush()
