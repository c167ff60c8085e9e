"""Running the command: in this process where that is enough, else in one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pytest

__all__ = ["HEAVY", "Result", "call", "command", "python", "snapshot", "stagings"]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
HEAVY: Final = ("torch", "transformers", "peft", "accelerate", "onnxscript", "onnx_ir")
"""Libraries that light commands must do without; absent where `without` names them."""

_ABSENT: Final = """
import sys
for name in {names!r}:
    sys.modules[name] = None
"""
"""As if these were not installed: not found, and not to be imported."""


@dataclass(frozen=True)
class Result:
    """The result of a command: its exit code and its output."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def message(self) -> str:
        """The message on stderr, required to be one message and no traceback."""
        assert "Traceback" not in self.err
        assert self.err.count("error: ") == 1, self.err
        return self.err.partition("error: ")[2]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Run ``lora-export`` in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    try:
        code = run([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
    captured = capsys.readouterr()
    return Result(code, captured.out, captured.err)


def command(
    *arguments: object,
    without: Sequence[str] = (),
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Result:
    """Run ``python -m lora_export`` in a process of its own.

    Args:
        arguments: The command line.
        without: Packages that are not to be had there.
        folder: The working directory.
        environment: Variables that differ.
        before: Called in the new process before Python starts.
    """
    argv = ["-m", "lora_export", *map(str, arguments)]
    if without:
        prelude = _ABSENT.format(names=list(without))
        argv = ["-c", f"{prelude}\nfrom lora_export.__main__ import main\nmain()", *argv[2:]]
    return python(*argv, folder=folder, environment=environment, before=before)


def python(
    *arguments: str,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Result:
    """Run this interpreter with this repository on its path.

    It leaves no byte code: a disk that is full there would cut it short for all later runs.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder or REPOSITORY,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        },
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def stagings(*folders: Path) -> list[str]:
    """Return what unfinished work left in `folders` or below."""
    return sorted(
        str(path)
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob(".lora-export-*")
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder` with its content; locks aside."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }
