"""The kinds of bad files: each function puts one in the place of a file or folder."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["COPY", "GROWING", "KINDS", "OTHER", "UNREADABLE", "Kind", "Place", "clear", "fits"]

GROWING: Final = "growing"
"""The kind that `tools.bad_file_matrix.sandbox` lengthens while the command runs."""

COPY: Final = "copy"
OTHER: Final = "other"
"""What links lead to: the inputs once more, and a folder and file that are none of them."""

UNREADABLE: Final = "unreadable"
"""The kind that root's rights overcome: the command runs without them."""

_ZEROS_BYTES: Final = 100 << 20
_SPARSE_BYTES: Final = 10 << 30
_DEPTH: Final = 100_000
_JSON: Final = frozenset({".json", ".jsonl", ".yaml", ".jinja", ".pbtxt", ".lock", ".md", ""})


class Place(NamedTuple):
    """A spoiled file, its original, and the folder that links lead to.

    Attributes:
        relative: The path in the folder of all inputs.
        path: The file or folder.
        pristine: The valid one.
        outside: A folder with a second copy of the inputs and something that is none of them.
    """

    relative: str
    path: Path
    pristine: Path
    outside: Path


class Kind(NamedTuple):
    """A kind of bad file.

    Attributes:
        spoil: Puts it in the place, where the valid file or folder still is.
        of_folders: Whether it is also put in the place of a folder.
        of_texts: Whether it only says something in the place of a text.
        of_nothing: Whether it is also put where the valid input has nothing.
        alters: Whether what is read there is not what was written.
    """

    spoil: Callable[[Place], None]
    of_folders: bool = False
    of_texts: bool = False
    of_nothing: bool = False
    alters: bool = True


def clear(path: Path) -> None:
    """Remove whatever is at a path."""
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        shutil.rmtree(path)
    else:
        path.unlink()


def fits(kind: Kind, pristine: Path) -> bool:
    """Return whether a kind is put in the place of this file or folder."""
    if not os.path.lexists(pristine):
        return kind.of_nothing
    if pristine.is_dir() and not pristine.is_symlink():
        return kind.of_folders
    return not kind.of_texts or pristine.suffix in _JSON


def _absent(place: Place) -> None:
    clear(place.path)


def _turned(place: Place) -> None:
    """Put a folder in the place of a file, and a file in the place of a folder."""
    is_folder = _clear_folder(place)
    if is_folder:
        place.path.write_bytes(b"x")
    else:
        place.path.mkdir(mode=0o777)


def _clear_folder(place: Place) -> bool:
    """Remove what is there; return whether it was a folder."""
    is_folder = place.path.is_dir() and not place.path.is_symlink()
    clear(place.path)
    return is_folder


def _loop(place: Place) -> None:
    clear(place.path)
    place.path.symlink_to(place.path.name)


def _dangling(place: Place) -> None:
    clear(place.path)
    place.path.symlink_to("nowhere-at-all")


def _zero_device(place: Place) -> None:
    clear(place.path)
    place.path.symlink_to("/dev/zero")


def _outside(place: Place) -> None:
    """Put a link to the valid file or folder, which lies elsewhere."""
    clear(place.path)
    place.path.symlink_to(place.outside / COPY / place.relative)


def _elsewhere(place: Place) -> None:
    """Put a link to another file or folder of the machine."""
    is_folder = _clear_folder(place)
    other = place.outside / OTHER
    place.path.symlink_to(other if is_folder else other / OTHER)


def _pipe(place: Place) -> None:
    clear(place.path)
    os.mkfifo(place.path, 0o666)


def _socket(place: Place) -> None:
    clear(place.path)
    with contextlib.chdir(place.path.parent), socket.socket(socket.AF_UNIX) as each:
        each.bind(place.path.name)  # a socket's address is short


def _unreadable(place: Place) -> None:
    place.path.chmod(0)


def _growing(place: Place) -> None:
    _own(place)


def _empty(place: Place) -> None:
    _write(place, b"")


def _half(place: Place) -> None:
    data = place.pristine.read_bytes()
    _write(place, data[: len(data) // 2])


def _flipped(place: Place) -> None:
    """Change one bit of one byte, which the path and the length choose."""
    data = bytearray(place.pristine.read_bytes())
    if data:
        at = random.Random(f"{place.path.name}:{len(data)}").randrange(len(data))
        data[at] ^= 1 << (at % 8)
    _write(place, bytes(data))


def _first_flipped(place: Place) -> None:
    """Change one byte of the first 64, where headers and lengths are."""
    data = bytearray(place.pristine.read_bytes())
    if data:
        data[random.Random(place.path.name).randrange(min(len(data), 64))] ^= 0x80
    _write(place, bytes(data))


def _random(place: Place) -> None:
    size = max(place.pristine.stat().st_size, 1)
    _write(place, random.Random(size).randbytes(size))


def _zeros(place: Place) -> None:
    _write(place, b"")
    os.truncate(place.path, _ZEROS_BYTES)


def _sparse(place: Place) -> None:
    _write(place, place.pristine.read_bytes())
    os.truncate(place.path, _SPARSE_BYTES)


def _text(place: Place) -> None:
    _write(place, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


def _not_utf8(place: Place) -> None:
    _write(place, b'{"a": "\xff\xfe\x80"}\n')


def _deep(place: Place) -> None:
    _write(place, b"[" * _DEPTH + b"]" * _DEPTH)


def _deep_object(place: Place) -> None:
    _write(place, b'{"a":' * _DEPTH + b"1" + b"}" * _DEPTH)


def _holding(data: bytes) -> Callable[[Place], None]:
    return lambda place: _write(place, data)


def _own(place: Place) -> None:
    _write(place, place.pristine.read_bytes())


def _write(place: Place, data: bytes) -> None:
    clear(place.path)
    place.path.write_bytes(data)
    place.path.chmod(0o666)


KINDS: Final[dict[str, Kind]] = {
    "absent": Kind(_absent, of_folders=True),
    "turned": Kind(_turned, of_folders=True, of_nothing=True),
    "loop": Kind(_loop, of_folders=True, of_nothing=True),
    "dangling": Kind(_dangling, of_folders=True, of_nothing=True),
    "zero_device": Kind(_zero_device, of_folders=True, of_nothing=True),
    "outside": Kind(_outside, of_folders=True, alters=False),
    "elsewhere": Kind(_elsewhere, of_folders=True, of_nothing=True),
    "pipe": Kind(_pipe, of_folders=True, of_nothing=True),
    "socket": Kind(_socket, of_folders=True, of_nothing=True),
    UNREADABLE: Kind(_unreadable, of_folders=True),
    GROWING: Kind(_growing),
    "empty": Kind(_empty, of_nothing=True),
    "half": Kind(_half),
    "flipped": Kind(_flipped),
    "first_flipped": Kind(_first_flipped),
    "random": Kind(_random),
    "zeros": Kind(_zeros),
    "sparse": Kind(_sparse),
    "text": Kind(_text, of_nothing=True),
    "not_utf8": Kind(_not_utf8, of_texts=True),
    "list": Kind(_holding(b"[]"), of_texts=True),
    "null": Kind(_holding(b"null"), of_texts=True),
    "object": Kind(_holding(b"{}"), of_texts=True),
    "string": Kind(_holding(b'"x"'), of_texts=True),
    "number": Kind(_holding(b"1e999"), of_texts=True),
    "objects": Kind(_holding(b'[{"a": [null, {}]}]'), of_texts=True),
    "deep": Kind(_deep, of_texts=True),
    "deep_object": Kind(_deep_object, of_texts=True),
}
"""Each kind by its name."""
