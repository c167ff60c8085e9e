"""The content of folders and files as one hash, without reading again what has not changed."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import InputError
from lora_export.core.files import atomic_write_bytes, sha256_of_file
from lora_export.core.json_file import parse_json
from lora_export.ondevice.file_opening import read_file, real_path, reason_of, require_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["CONTENT_FILE", "FLEET_FOLDER", "ContentHashes", "content_of", "files_below"]

FLEET_FOLDER: Final = ".fleet"
"""The folder in a store for what a run remembers, relative to the store."""

CONTENT_FILE: Final = f"{FLEET_FOLDER}/content.json"
"""Where the hashes of a fleet are kept, relative to its store."""

_LIMIT_BYTES: Final = 1 << 28
_FILES_LIMIT: Final = 10_000


class ContentHashes:
    """SHA-256 of files, remembered by size, time of change and inode.

    Args:
        file: Where they are kept between runs; what cannot be read there is hashed again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, list[object]] = {}
        self._changed = False
        try:
            table = parse_json(read_file(file, _LIMIT_BYTES))
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(table, dict):
            self._known = {path: row for path, row in table.items() if isinstance(row, list)}

    def of_file(self, path: Path) -> str:
        """Return the SHA-256 of a file.

        Raises:
            InputError: It cannot be read, or is no regular file.
        """
        try:
            status = require_file(path)
            mark = [status.st_size, status.st_mtime_ns, status.st_ino]
            row = self._known.get(str(path))
            if row is not None and row[:-1] == mark and isinstance(row[-1], str):
                return row[-1]
            found = sha256_of_file(path)
        except OSError as error:
            msg = f"cannot read {str(path)!r}: {reason_of(error)}"
            raise InputError(msg, hint="Check the path and its permissions.") from error
        self._known[str(path)] = [*mark, found]
        self._changed = True
        return found

    def of(self, path: Path) -> str:
        """Return the hash of a file's contents, or of the names and contents in a folder.

        Hidden files and folders do not count.

        Raises:
            InputError: Something in it cannot be read, or there are more than 10,000 files.
        """
        if not path.is_dir():
            return self.of_file(path)
        return content_of({name: self.of_file(path / name) for name in files_below(path)})

    def save(self) -> None:
        """Write what was hashed, for later runs.

        Raises:
            StorageError: It cannot be written.
        """
        if self._changed:
            atomic_write_bytes(self._file, json.dumps(self._known).encode())
            self._changed = False


def content_of(files: Mapping[str, str]) -> str:
    """Return the hash of a folder's contents.

    Args:
        files: The SHA-256 of each file, by its path below the folder.
    """
    digest = hashlib.sha256()
    for name, sha256 in sorted(files.items()):
        digest.update(json.dumps([name, sha256]).encode() + b"\n")
    return digest.hexdigest()


def files_below(folder: Path) -> list[str]:
    """Return the files below a folder that count for its content, relative to it.

    Raises:
        InputError: There are more than 10,000.
    """
    folder = real_path(folder)
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.relpath(os.path.join(parent, name), folder)  # noqa: PTH118  (many small steps)
            for name in files
            if not name.startswith(".")
        ]
        if len(found) > _FILES_LIMIT:
            msg = f"{str(folder)!r} holds more than {_FILES_LIMIT:,} files"
            raise InputError(msg, hint="Give the folder of one checkpoint or adapter.")
    return sorted(found)
