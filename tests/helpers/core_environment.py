"""Environments that hold what ``pip install .`` brings, and nothing of its extras."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.cli.running import REPOSITORY, Result

__all__ = ["core_command", "core_python", "core_python_3_10"]

_BUILD: Final = REPOSITORY / "build"
_LOCK: Final = REPOSITORY / "requirements-core.lock"
_VERSIONS_3_10: Final = "~/.pyenv/versions/3.10.*/bin/python3.10"


def core_python() -> Path:
    """Return the Python of ``make core-env``, or skip the test."""
    program = _BUILD / "core-env/bin/python"
    if not program.is_file():
        pytest.skip("there is no environment of the core alone: make core-env")
    return program


def core_python_3_10() -> Path:
    """Return a Python 3.10 with the core alone, made where it is not there; or skip the test."""
    folder = _BUILD / "core-env-3.10"
    stamp, wanted = folder / ".installed", _LOCK.read_text("utf-8")
    if not stamp.is_file() or stamp.read_text("utf-8") != wanted:
        _make(folder)
        stamp.write_text(wanted, "utf-8")
    return folder / "bin/python"


def core_command(program: Path, *arguments: object, cache: Path | None = None) -> Result:
    """Run ``lora-export`` of this tree in an environment of the core.

    Args:
        program: The environment's Python.
        arguments: The command line.
        cache: The folder of the graph cache; by default that of this process.
    """
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    if cache is not None:
        environment["LORA_EXPORT_CACHE"] = str(cache)
    done = subprocess.run(
        [program, "-m", "lora_export", *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def _make(folder: Path) -> None:
    found = [shutil.which("python3.10"), *_globbed(_VERSIONS_3_10)]
    for program in filter(None, found):
        done = _run(program, "-m", "venv", "--clear", folder)
        if done.returncode == 0:
            break
    else:
        pytest.skip("there is no Python 3.10 with venv")
    done = _run(
        folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", _LOCK,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"pip cannot install the core for Python 3.10: {done.stderr.strip()[-200:]}")


def _globbed(pattern: str) -> list[str]:
    path = Path(pattern).expanduser()
    parts = path.relative_to("/").as_posix()
    return [str(each) for each in sorted(Path("/").glob(parts))]


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    argv = [str(each) for each in command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=500, check=False)
