"""Whole tensors that changed (``--adapter-format delta``): a file of them, or a checkpoint.

    one file, or a folder with one       some parameters: trained biases (BitFit), norms, a head
    a folder with ``config.json``        a full fine-tuned checkpoint: every parameter of the base

Every tensor has the name of a parameter of the base and replaces it. A checkpoint has to have all
of them: what is missing is listed when the base is known (`lora_export.adapters.leftovers`). The
format is never detected, because nothing in such a file says that it is an update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.adapters.canonical import Adapter, Saved
from lora_export.adapters.formats.open_archive import require_short_names
from lora_export.adapters.wrappers import unwrap
from lora_export.core.checkpoint_tables import INDEX, read_checkpoint_table
from lora_export.core.errors import AdapterError, InputError
from lora_export.core.files import sha256_of_files
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import same_values
from lora_export.core.torch_file import read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.tensors import Tensor

__all__ = ["DELTA", "read_delta"]

DELTA: Final = "delta"
"""The format's name."""

_CONFIG: Final = "config.json"
_INDICES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE: Final = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")
_INDEX_LIMIT_BYTES: Final = 1 << 28


def read_delta(path: Path, *, name: str, source: str) -> Adapter:
    """Read the headers of a file of whole tensors, or of a checkpoint.

    Args:
        path: The file or folder.
        name: The name it goes by in an export.
        source: Where it came from, for messages and the manifest.

    Raises:
        AdapterError: A file is missing or damaged, or there are no tensors.
    """
    complete = path.is_dir() and (path / _CONFIG).is_file()
    files = _files(path, source)
    found: dict[str, Tensor] = {}
    repeated: list[str] = []
    try:
        for file in files:
            for key, tensor in _read(file).items():
                first = found.setdefault(unwrap(key), tensor)
                if first is not tensor:
                    _require_same(first, tensor, source)
                    repeated.append(key)
    except AdapterError:
        raise
    except InputError as error:
        raise AdapterError(error.message, hint=error.hint) from error
    if not found:
        msg = f"adapter {source!r} has no tensors"
        raise AdapterError(msg, hint="It was saved before training, or damaged.")
    require_short_names(found, source)
    return Adapter(
        name=name,
        source=source,
        folder=path if path.is_dir() else path.parent,
        format=DELTA,
        low_rank=(),
        saved=tuple(Saved(key, found[key], in_place=True) for key in sorted(found)),
        task_type=None,
        base_name=None,
        sha256=sha256_of_files(files),
        config={},
        repeated=tuple(repeated),
        complete=complete,
    )


def _read(file: Path) -> Mapping[str, Tensor]:
    return read_header(file)[0] if file.suffix == ".safetensors" else read_torch_file(file)


def _require_same(first: Tensor, second: Tensor, source: str) -> None:
    if not same_values(first, second):
        msg = f"adapter {source!r} holds two tensors for {unwrap(first.name)!r}"
        raise AdapterError(msg, hint="The file is damaged, or two updates were mixed.")


def _files(path: Path, source: str) -> tuple[Path, ...]:
    """Return the files that hold the tensors."""
    if not path.is_dir():
        if path.suffix not in _SUFFIXES:
            msg = f"adapter {source!r} is a file of an unknown kind: {path.name!r}"
            raise AdapterError(msg, hint=f"Known endings: {', '.join(_SUFFIXES)}.")
        return (path,)
    index = next((path / each for each in _INDICES if (path / each).is_file()), None)
    if index is not None:
        return _shards(index, source)
    whole = next((path / each for each in _WHOLE if (path / each).is_file()), None)
    if whole is not None:
        return (whole,)
    found = sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES)
    if len(found) != 1:
        names = ", ".join(each.name for each in found[:4]) or "none"
        msg = f"adapter {source!r} has {len(found)} files of tensors, not one: {names}"
        raise AdapterError(msg, hint="Give the file, or the folder of a checkpoint.")
    return tuple(found)


def _shards(index: Path, source: str) -> tuple[Path, ...]:
    hint = "The download is incomplete, or the index is damaged: fetch it again."
    table = read_checkpoint_table(
        index, _INDEX_LIMIT_BYTES, AdapterError, kind=INDEX, absent=hint, damaged=hint
    )
    shards = [index.parent / each for each in sorted(set(table["weight_map"].values()))]
    missing = [each.name for each in shards if not each.is_file()]
    if missing:
        msg = f"shard {missing[0]!r} of adapter {source!r} is missing"
        raise AdapterError(msg, hint=hint)
    return tuple(shards)
