"""Downloads by pip whose hashes are checked before anything is used: rows of tools/locks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

__all__ = ["download", "install"]

LOCKS: Final = Path(__file__).resolve().parent / "locks"
_MISMATCH: Final = re.compile(
    r"^\s+(?P<name>\S+)(?: from (?P<address>\S+))?[^\n]*:[ ]*\n"
    r"\s+Expected sha256.*?\n\s+Got\s+(?P<got>[0-9a-f]{64})",
    re.MULTILINE | re.DOTALL,
)


def download(lock: str, folder: Path, *options: str) -> list[Path]:
    """Download the files of a lock file into a folder, without dependencies; return their paths.

    Args:
        lock: A name of tools/locks, or the path of a lock file.
        folder: It exists.
        options: Further options of ``pip download``, such as a platform.

    Raises:
        SystemExit: A file is not the one that is locked, or pip cannot have it.
    """
    _pip(sys.executable, "download", lock, "--no-deps", "--dest", str(folder), *options)
    return sorted(path for path in folder.iterdir() if path.suffix in {".whl", ".gz", ".zip"})


def install(python: Path, lock: str) -> None:
    """Install the rows of a lock file, and nothing else, into the environment of an interpreter.

    Raises:
        SystemExit: A file is not the one that is locked, or pip cannot have it.
    """
    _pip(str(python), "install", lock, "--no-deps", "--only-binary", ":all:")


def _pip(python: str, command: str, lock: str, *options: str) -> None:
    file = Path(lock) if lock.endswith(".lock") else LOCKS / f"{lock}.lock"
    done = subprocess.run(
        [python, "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--require-hashes",
         "--requirement", str(file), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not done.returncode:
        return
    wrong = _MISMATCH.search(done.stderr)
    if wrong is not None:
        name = (wrong["address"] or wrong["name"]).partition("#")[0].rpartition("/")[2]
        sys.exit(
            f"error: {name} has SHA-256 {wrong['got']}, which is not in {file.name}: "
            "this is another file than the one that is locked; nothing was used"
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    said = (errors or done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    sys.exit(f"error: pip cannot {command} what {file.name} names: {said.removeprefix('ERROR: ')}")
