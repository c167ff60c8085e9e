"""The files of a base in GGUF: one, or the parts of a split one.

``NAME-00001-of-00003.gguf`` … are parts (llama.cpp's ``gguf-split``); ``split.no`` and
``split.count`` in each say which. A base is given as one of its files, or as the folder that holds
nothing else in GGUF.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import CheckpointError, InputError, LoraExportError
from lora_export.core.gguf_file import read_gguf_blocks, read_gguf_metadata
from lora_export.core.gguf_library import ggml_types, require_gguf
from lora_export.core.listing import first_few
from lora_export.ondevice.printable import shell_command
from lora_export.weights.quantized.panels import damaged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.gguf_library import GgmlType
    from lora_export.core.tensors import FileTensor

__all__ = ["GgufParts", "gguf_file_of", "holds_gguf_base", "read_parts"]

_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_SUFFIX: Final = ".gguf"
_OTHERS: Final = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
_SHOWN: Final = 5


@dataclass(frozen=True)
class GgufParts:
    """The tensors of all files of a base.

    Attributes:
        path: The file that was given, of several the first.
        metadata: The metadata of the first file; arrays are None.
        tensors: By their names in GGUF; those in blocks are bytes.
        types: The type of each tensor in blocks.
    """

    path: Path
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, FileTensor] = field(repr=False)
    types: Mapping[str, GgmlType] = field(repr=False)


def gguf_file_of(place: Path) -> Path | None:
    """Return the GGUF file of a base, of several parts the first; None where it has none.

    Args:
        place: A file, or a folder; one with weights in another format is not looked into.

    Raises:
        CheckpointError: The folder holds several.
    """
    if place.suffix == _SUFFIX and place.is_file():
        return _first_part(place)
    if not place.is_dir() or any(next(place.glob(each), None) for each in _OTHERS):
        return None
    found = sorted({_first_part(path) for path in place.glob(f"*{_SUFFIX}") if path.is_file()})
    if len(found) > 1:
        msg = f"{str(place)!r} holds several GGUF files:"
        items = first_few([path.name for path in found], _SHOWN)
        command = shell_command(["--base", found[0]])
        raise CheckpointError(msg, items=items, hint=f"Choose one: {command}")
    return found[0] if found else None


def holds_gguf_base(place: Path) -> bool:
    """Return whether a file or a folder is a base in GGUF, and not an adapter."""
    try:
        file = gguf_file_of(place)
        return file is not None and read_gguf_metadata(file).get("general.type") != "adapter"
    except LoraExportError:
        return False


def _first_part(path: Path) -> Path:
    match = _PART.fullmatch(path.name)
    if match is None:
        return path
    return path.with_name(f"{match['stem']}-00001-of-{match['count']}{_SUFFIX}")


def read_parts(path: Path) -> GgufParts:
    """Read the headers of a GGUF file and of the parts that belong to it.

    Args:
        path: The file, of several the first.

    Raises:
        MissingRuntimeError: The ``gguf`` package is not installed.
        CheckpointError: A part is missing, damaged, or belongs to another file.
        UnsupportedError: A tensor has a type that is not read.
    """
    require_gguf(f"the base {str(path)!r}")
    types = ggml_types()
    sizes = {number: (each.values, each.count_bytes) for number, each in types.items()}
    match = _PART.fullmatch(path.name)
    count = int(match["count"]) if match is not None else 1
    tensors: dict[str, FileTensor] = {}
    kinds: dict[str, int] = {}
    first: dict[str, Any] = {}
    for number in range(count):
        part = path
        if match is not None:
            name = f"{match['stem']}-{number + 1:05}-of-{match['count']}{_SUFFIX}"
            part = path.with_name(name)
        if not part.is_file():
            msg = f"the part {part.name!r} of the base {str(path)!r} is missing"
            raise CheckpointError(msg, hint="The download is incomplete: fetch it again.")
        try:
            own, own_kinds, metadata = read_gguf_blocks(part, sizes)
        except InputError as error:
            raise CheckpointError(error.message, hint=error.hint) from error
        said = (metadata.get("split.no", number), metadata.get("split.count", count))
        if said != (number, count):
            msg = f"{str(part)!r} says that it is part {said[0]} of {said[1]}, counted from 0"
            raise damaged(f"{msg}; its name says {number} of {count}")
        if twice := sorted(set(own) & set(tensors)):
            msg = f"tensor {twice[0]!r} is in two parts of {str(path)!r}"
            raise damaged(msg)
        first = first or metadata
        tensors |= own
        kinds |= own_kinds
    blocks = {name: types[kind] for name, kind in kinds.items() if kind in types}
    return GgufParts(path, first, tensors, blocks)
