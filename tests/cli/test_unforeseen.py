"""Errors that no module has translated: one sentence, with the right exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import lora_export.cli.inspect
from lora_export.cli import run
from lora_export.core.errors import StorageError
from tests.helpers.handmade import save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def _fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(lora_export.cli.inspect.inspect, "callback", fail)


@pytest.mark.parametrize(
    "number",
    [errno.EIO, errno.EROFS, errno.ELOOP, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ESTALE],
)
def test_an_error_of_the_system_names_its_path(number, monkeypatch, capsys, tmp_path):
    _fail_with(monkeypatch, OSError(number, os.strerror(number), "some/file"))
    assert run(["inspect", str(tmp_path)]) == StorageError.exit_code
    error = capsys.readouterr().err
    assert f"error: cannot access 'some/file': {os.strerror(number)}" in error
    assert "bug" not in error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 9.00 TiB for an array"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_memory_that_does_not_suffice_has_its_own_sentence(error, monkeypatch, capsys, tmp_path):
    _fail_with(monkeypatch, error)
    assert run(["inspect", str(tmp_path), "--json"]) == StorageError.exit_code
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["kind"] == "MemoryError"
    assert "error: not enough memory" in err


def test_a_bug_says_that_it_is_one(monkeypatch, capsys, tmp_path):
    _fail_with(monkeypatch, AttributeError("no such thing"))
    assert run(["inspect", str(tmp_path)]) == 1
    assert "This is a bug in lora-export" in capsys.readouterr().err


SENTENCE = "interrupted; nothing half-written was left"
INTERRUPTED_IMPORT = """
import os, signal, sys
at, number = int(sys.argv.pop(1)), getattr(signal, sys.argv.pop(1))
count = 0
def hook(event, arguments):
    global count
    count += event == "import"
    if event == "import" and count == at:
        os.kill(os.getpid(), number)
from lora_export.__main__ import main
sys.addaudithook(hook)
main()
"""


def _interrupt_import(at: int, how: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, str(at), how, "inspect", str(folder)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def _check_interrupts(places: list[int], how: str, code: int, folder: Path) -> None:
    save_checkpoint(folder, {"x": (3,)})
    for at in places:
        result = _interrupt_import(at, how, folder)
        before_handlers = -signal.SIGTERM if how == "SIGTERM" else code
        assert result.returncode in {code, before_handlers, 0}, (at, result.stderr)
        assert "Traceback" not in result.stderr, at
        if how == "SIGINT" and result.returncode == code:
            assert result.stderr.strip() == SENTENCE, at


PLACES = [1, 2, 40, 120, 180, 260, 330]


def test_ctrl_c_while_modules_are_imported_is_one_sentence(tmp_path):
    _check_interrupts(PLACES, "SIGINT", 130, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_at_any_import_is_one_sentence(how, code, tmp_path):
    _check_interrupts(list(range(1, 500, 23)), how, code, tmp_path)
