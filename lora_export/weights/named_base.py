"""The base that an adapter names by its folder, compared with the given base by contents.

PEFT records the path that its base was loaded from. Where that folder exists on this machine it is
compared with the base that is given, and the cheapest answer comes first:

    1. the same folder, or the same weight files        equal, nothing is read
    2. names, shapes and dtypes, from the headers       other ones: another base
    3. the values, tensor by tensor                     read up to the first that differs

Of an export whose base is not at hand only the fingerprint is known; the named folder is hashed
then. A base that cannot be read is left alone. Of quantized bases what is stored is compared; where
one of the two is quantized, the adapter was trained on other values than it is merged into.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.errors import LoraExportError
from lora_export.core.tensors import bytes_of, iter_blocks, nbytes
from lora_export.ondevice.file_opening import real_path
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.fingerprint import TIED_NAMES, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.progress import Progress
    from lora_export.core.tensors import Tensor
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["GivenBase", "given_checkpoint", "note_on_named_folder"]

_WEIGHTS: Final = ("*.safetensors", "pytorch_model*.bin")
_START_BYTES: Final = 1 << 16
_BLOCK_BYTES: Final = 1 << 22


@dataclass(frozen=True)
class GivenBase:
    """The base that adapters are merged into, as far as it is at hand.

    Attributes:
        source: Its path or id, as the user gave it.
        hub_id: Its id on the hub (``hf://owner/name@commit``); None where it has none.
        folder: Its folder; None where it is not at hand.
        tensors: Its tensors; None where they are not at hand.
        quantization: The method by which it is stored quantized; None where it is not.
        stored: Its tensors as its files hold them, where they are quantized.
        fingerprint: Its fingerprint, where only that is known.
        config: Its ``config.json``; empty where it is not at hand.
    """

    source: str
    hub_id: str | None
    folder: Path | None = None
    tensors: Mapping[str, Tensor] | None = field(default=None, repr=False)
    quantization: str | None = None
    stored: Mapping[str, Tensor] | None = field(default=None, repr=False)
    fingerprint: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)


def given_checkpoint(checkpoint: Checkpoint, hub_id: str | None) -> GivenBase:
    """Return an open checkpoint as the base that is given; of two, the one of the adapters."""
    compared = checkpoint.of_adapters
    return GivenBase(
        compared.source,
        hub_id,
        compared.folder,
        checkpoint.tensors,
        quantization=_method(compared),
        stored=compared.stored,
        config=checkpoint.config,
    )


def _method(checkpoint: Checkpoint) -> str | None:
    """Return the method by which a checkpoint is quantized; None where it is not."""
    record = checkpoint.stored_form
    return record.method if record is not None else None


def note_on_named_folder(
    adapter: Adapter, base: GivenBase, tell: Progress, *, values: bool = True
) -> str | None:
    """Return a sentence for the user, where an adapter names a folder that holds another base.

    A relative path is looked up in the current folder, as PEFT does it, and in the adapter's.

    Args:
        adapter: The adapter.
        base: The base that is given.
        tell: Shows how much has been read.
        values: Whether values are compared too, or headers only.

    Returns:
        None where the bases are equal or cannot be compared, or where no such folder exists.
    """
    named = adapter.base_name
    found: list[str] = []
    for folder, where in _named_folders(adapter):
        difference = _difference(folder, base, tell, values=values)
        if difference is None:
            return None
        found.append(f"{difference}{where}")
    if not found:
        return None
    return (
        f"adapter {adapter.source!r} names the base {named!r}, and {base.source!r} differs from it "
        f"({found[0]}); matching shapes do not prove that it was trained on this base"
    )


def _named_folders(adapter: Adapter) -> list[tuple[Path, str]]:
    """Return the folders that the name of the base may mean, and where each was found."""
    named = adapter.base_name
    if not isinstance(named, str) or not named or "\0" in named:
        return []
    path = Path(named)
    own = adapter.folder if adapter.folder.is_dir() else adapter.folder.parent
    places = (
        [(path, "")]
        if path.is_absolute()
        else [
            (path, "; found in the current folder"),
            (own / path, "; found in the adapter's folder"),
        ]
    )
    return [(place, where) for place, where in places if _is_checkpoint(place)]


def _is_checkpoint(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file()
    except OSError:  # a name that is too long, a folder that may not be read
        return False


def _difference(folder: Path, base: GivenBase, tell: Progress, *, values: bool) -> str | None:
    """Return how the checkpoint in `folder` differs from the given base; None where it does not."""
    if base.folder is not None and _same_files(folder, base.folder):
        return None
    try:
        named = open_checkpoint(folder)
    except LoraExportError:
        return None
    if base.stored is not None:
        ours, theirs = base.quantization, _method(named)
        if ours != theirs:
            return f"that one is {_in_words(theirs)}, the given one {_in_words(ours)}"
        found = _header_difference(named.stored, base.stored)
        if found is None and values:
            found = _value_difference(folder, named.stored, base.stored, tell)
        return found
    return _other_fingerprint(named, base, tell) if values else None


def _in_words(method: str | None) -> str:
    return "not quantized" if method is None else f"quantized ({method})"


def _other_fingerprint(named: Checkpoint, base: GivenBase, tell: Progress) -> str | None:
    """Return that two fingerprints differ; None where they do not, or where one is not known."""
    if base.fingerprint is None:
        return None
    total = sum(nbytes(tensor) for tensor in named.stored.values())
    tell.start(f"hashing the base {named.folder}", total)
    same = fingerprint(named, tell.advance) == base.fingerprint
    return None if same else "the fingerprints differ, so values or dtypes do"


def _same_files(one: Path, two: Path) -> bool:
    """Return whether two folders have the same files of weights, by their real paths."""
    if real_path(one) == real_path(two):
        return True
    files = [
        {real_path(path) for pattern in _WEIGHTS for path in folder.glob(pattern)}
        for folder in (one, two)
    ]
    return bool(files[0]) and files[0] == files[1]


def _header_difference(named: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Return the first difference of names, shapes and dtypes; a tied copy is none."""
    for name in sorted(named.keys() ^ given.keys()):
        if not name.endswith(TIED_NAMES):
            return f"only {'the named' if name in named else 'the given'} base has {name!r}"
    for name in sorted(named.keys() & given.keys()):
        theirs, ours = named[name], given[name]
        if theirs.shape != ours.shape:
            return f"{name!r} is {list(theirs.shape)} there and {list(ours.shape)} here"
        if theirs.dtype != ours.dtype:
            dtypes = f"{theirs.dtype.name} there and {ours.dtype.name} here"
            return f"other values or dtype: {name!r} is {dtypes}"
    return None


def _value_difference(
    folder: Path, named: Mapping[str, Tensor], given: Mapping[str, Tensor], tell: Progress
) -> str | None:
    """Return the first tensor whose values differ: the start of each is compared before the rest.

    A base that was trained further differs nearly everywhere and is found at once.
    """
    shared = sorted(named.keys() & given.keys())
    for name in shared:
        count = min(_START_BYTES, nbytes(named[name]))
        theirs, ours = np.empty(count, np.uint8), np.empty(count, np.uint8)
        named[name].read_into(bytes_of(theirs), 0)
        given[name].read_into(bytes_of(ours), 0)
        if not np.array_equal(theirs, ours):
            return f"other values in {name!r}"
    tell.start(f"comparing the base with {folder}", sum(nbytes(named[name]) for name in shared))
    for name in shared:
        blocks = (iter_blocks(each[name], _BLOCK_BYTES) for each in (named, given))
        for one, two in zip(*blocks, strict=True):
            if not np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(two, np.uint8)):
                return f"other values in {name!r}"
            tell.advance(len(two))
    return None
