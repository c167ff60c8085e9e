"""``bundle.json``: what a bundle holds, for whom, and the SHA-256 of every file.

The index carries the SHA-256 of itself, taken over everything else in it: an index that was edited
is found out. It proves no origin; for that, compare the digest with the one that was printed when
the bundle was packed.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.bundle.index_values import read_contents
from lora_export.ondevice.device_errors import BundleError, UnsupportedError
from lora_export.ondevice.device_files import read_errors, sha256_of_file
from lora_export.ondevice.file_opening import read_file, real_path, reason_of, require_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lora_export.ondevice.bundle.index_values import Contents

__all__ = [
    "INDEX_LIMIT_BYTES",
    "INDEX_NAME",
    "NAME_LIMIT",
    "Index",
    "Member",
    "check_name",
    "encode_index",
    "is_bundle_name",
    "parse_index",
    "read_index",
    "require_files",
]

INDEX_NAME: Final = "bundle.json"
INDEX_LIMIT_BYTES: Final = 1 << 24
FORMAT: Final = "lora-export/bundle"
FORMAT_VERSION: Final = 3
"""Version 3 has ready engines in the place of graphs; others are written as version 2 still.

Version 2 has its program in folders, version 1 in one; the keys of their indexes are the same.
"""
_WITHOUT_ENGINES: Final = 2
_READABLE_VERSIONS: Final = (1, _WITHOUT_ENGINES, FORMAT_VERSION)

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
NAME_LIMIT: Final = 100
"""How many characters the name of a bundle has at most."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_PART: Final = re.compile(r"[A-Za-z0-9_.+@=,\-]{1,100}")
_LONGEST: Final = 100
_AGAIN: Final = "Copy it again, or pack it again: lora-export bundle."


@dataclass(frozen=True)
class Member:
    """One file in the index."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Index:
    """The index of a bundle.

    Attributes:
        name: The bundle's name; its archive holds one folder called so.
        digest: The SHA-256 of the index.
        tool: What packed it.
        files: Every file but the index, by its path.
        contents: What is known of its graphs.
    """

    name: str
    digest: str
    tool: str
    files: Mapping[str, Member] = field(repr=False)
    contents: Contents = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """The total size of the files."""
        return sum(each.size_bytes for each in self.files.values())


def encode_index(table: Mapping[str, Any]) -> bytes:
    """Return the bytes of ``bundle.json`` for everything that it says but its digest."""
    version = FORMAT_VERSION if table.get("sources") else _WITHOUT_ENGINES
    full = {"format": FORMAT, "format_version": version, **table}
    full["sha256"] = _digest(full)
    return json.dumps(full, indent=1, sort_keys=True).encode() + b"\n"


def _digest(table: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in table.items() if key != "sha256"}
    plain = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def read_index(bundle_dir: Path) -> Index:
    """Read the index of an unpacked bundle.

    Raises:
        BundleError: There is none, or it is not what was written.
        UnsupportedError: It was written by a newer version.
    """
    path = bundle_dir / INDEX_NAME
    try:
        if path.is_symlink():
            msg = f"{str(path)!r} is a link"
            raise BundleError(msg, hint=_AGAIN)
        data = read_file(path, INDEX_LIMIT_BYTES)
    except OSError as error:
        msg = f"{str(bundle_dir)!r} is not a bundle: {INDEX_NAME}: {reason_of(error)}"
        raise BundleError(msg, hint="Make one with: lora-export bundle") from error
    return parse_index(data, str(path))


def parse_index(data: bytes, where: str) -> Index:
    """Return the index that `data` holds, checked: its digest, its names, its sizes.

    Raises:
        BundleError: It is not what was written.
        UnsupportedError: It was written by a newer version.
    """
    if len(data) > INDEX_LIMIT_BYTES:
        msg = f"the index {where!r} is larger than {INDEX_LIMIT_BYTES} bytes"
        raise BundleError(msg, hint=_AGAIN)
    try:
        table = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"the index {where!r} is not readable JSON: {error}"
        raise BundleError(msg, hint=_AGAIN) from error
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        msg = f"{where!r} is not the index of a bundle"
        raise BundleError(msg, hint="Make one with: lora-export bundle")
    version = table.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        msg = f"the index {where!r} has format_version {version!r}; this reads {FORMAT_VERSION}"
        raise UnsupportedError(msg, hint="Upgrade lora-export, or pack the bundle again.")
    if version not in _READABLE_VERSIONS or table.get("sha256") != _digest(table):
        msg = f"the index {where!r} was edited: it does not have the SHA-256 that it names"
        raise BundleError(msg, hint=_AGAIN)
    name, tool, rows = (table.get(key) for key in ("name", "tool", "files"))
    if not isinstance(name, str) or not is_bundle_name(name):
        msg = f"the index {where!r} calls the bundle {name!r}"
        raise BundleError(msg, hint=_AGAIN)
    if not isinstance(tool, str) or not isinstance(rows, dict):
        msg = f"the index {where!r} is damaged: it has no 'tool' or 'files'"
        raise BundleError(msg, hint=_AGAIN)
    files = {each: _member(where, each, row) for each, row in rows.items()}
    _check_folders(where, files)
    return Index(name, table["sha256"], tool, files, read_contents(table, files, where))


def _member(where: str, name: str, row: object) -> Member:
    check_name(name, where)
    if name == INDEX_NAME:
        msg = f"the index {where!r} names itself"
        raise BundleError(msg, hint=_AGAIN)
    digest, size = (row.get("sha256"), row.get("bytes")) if isinstance(row, dict) else (None, None)
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        msg = f"the index {where!r} has no SHA-256 for {name!r}"
        raise BundleError(msg, hint=_AGAIN)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        msg = f"the index {where!r} says that {name!r} has {size!r} bytes"
        raise BundleError(msg, hint=_AGAIN)
    return Member(digest, size)


def is_bundle_name(name: str) -> bool:
    """Whether a bundle, and the folder in its archive, can be called so."""
    return len(name) <= NAME_LIMIT and _NAME.fullmatch(name) is not None


def check_name(name: str, where: str) -> str:
    """Return the path of a file below a bundle's folder, required to stay there.

    Raises:
        BundleError: It is absolute, climbs, is too long, or has characters that no file of a bundle
            has.
    """
    parts = name.split("/")
    plain = all(_PART.fullmatch(part) and part not in {".", ".."} for part in parts)
    if not plain or len(name) > _LONGEST:
        msg = f"{where!r} names {name!r}, which no bundle holds"
        hint = "Paths must be relative, without .., and of letters, digits and _.+@=,- only."
        raise BundleError(msg, hint=hint)
    return name


def _check_folders(where: str, files: Mapping[str, Member]) -> None:
    """Require that no file stands where another one, or a folder that it needs, does.

    Names that differ in case alone are one file where case does not count.
    """
    seen: dict[str, str] = {}
    for name in (INDEX_NAME, *files):
        if (other := seen.setdefault(name.lower(), name)) != name:
            msg = f"the index {where!r} has {other!r} and {name!r}, which differ in case alone"
            raise BundleError(msg, hint=_AGAIN)
        parts = name.split("/")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in files:
                msg = f"the index {where!r} has {'/'.join(parts[:end])!r} as a file and as a folder"
                raise BundleError(msg, hint=_AGAIN)


def require_files(bundle_dir: Path, index: Index, advance: Callable[[int], None]) -> None:
    """Require that every file of an unpacked bundle is there, a plain file, with its SHA-256.

    Args:
        bundle_dir: The bundle, unpacked.
        index: Its index.
        advance: Told how many bytes were compared.

    Raises:
        BundleError: A file is missing, is a link or no file, or differs.
    """
    inside = real_path(bundle_dir)
    for name, member in index.files.items():
        path, what = bundle_dir / name, f"{name!r} of {str(bundle_dir)!r}"
        try:
            is_link = path.is_symlink() or not real_path(path).is_relative_to(inside)
            size = 0 if is_link else require_file(path).st_size
        except OSError as error:
            absent = isinstance(error, FileNotFoundError)
            why = "is missing" if absent else f"cannot be read: {reason_of(error)}"
            msg = f"{what} {why}"
            raise BundleError(msg, hint=_AGAIN) from error
        if is_link:
            msg = f"{what} is a link, or is reached through one"
            raise BundleError(msg, hint=_AGAIN)
        if size != member.size_bytes:
            msg = f"{what} has {size} bytes, the index says {member.size_bytes}"
            raise BundleError(msg, hint=_AGAIN)
        with read_errors(repr(str(path))):
            found = sha256_of_file(path)
        if found != member.sha256:
            msg = (
                f"{what} is not the packed file: its SHA-256 is {found[:16]}…, "
                f"not {member.sha256[:16]}…"
            )
            raise BundleError(msg, hint=_AGAIN)
        advance(size)
