"""The base's folder and the adapter's names, prepared for transformers and PEFT."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from lora_export.adapters.canonical import Added, Computed, LowRank, Rows, Saved
from lora_export.core.files import storage_errors
from lora_export.ondevice.file_opening import real_path
from lora_export.weights.checkpoint import weight_files
from lora_export.weights.shards import write_sharded
from lora_export.weights.stream import copied_entry

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from lora_export.adapters.canonical import Adapter
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["bare_folder", "to_reference_names"]

_SHARD_BYTES: Final = 5 * 10**9
_Whole = TypeVar("_Whole", Saved, Added, Rows, Computed)


@contextlib.contextmanager
def bare_folder(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield a folder that holds the config of `checkpoint` and links to its weights, nothing else.

    transformers loads an adapter that it finds beside the weights, and dequantizes by a config that
    the weights contradict. Of a quantized base the folder holds the floats that it stands for, as
    files: adapters are trained on those, and the quantizing library is not needed.

    Raises:
        StorageError: There is no room for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="lora-export-base-") as temporary:
        folder = Path(temporary)
        with storage_errors(temporary):
            text = json.dumps(dict(checkpoint.config))
            (folder / "config.json").write_text(text, encoding="utf-8")
        if checkpoint.quantized is not None:
            _write_floats(checkpoint, folder)
        else:
            with storage_errors(temporary):
                for file in weight_files(checkpoint.folder):
                    (folder / file.name).symlink_to(real_path(file))
        yield folder


def _write_floats(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the tensors of a quantized base as the floats that they stand for."""
    entries = [copied_entry(name, tensor) for name, tensor in checkpoint.tensors.items()]
    write_sharded(folder, entries, max_shard_bytes=_SHARD_BYTES)


def to_reference_names(adapter: Adapter, parameters: Container[str], prefix: str) -> Adapter:
    """Return `adapter` with each name as the model has it, with or without its bare model's name.

    Args:
        adapter: The adapter, resolved: its names are the model's but for that prefix.
        parameters: The model's parameters.
        prefix: ``base_model_prefix``; may be empty.
    """
    inner = f"{prefix}." if prefix else ""

    def named(parameter: str) -> str:
        shorter = parameter.removeprefix(inner)
        candidates = (parameter, shorter, inner + shorter)
        return next((name for name in candidates if name in parameters), parameter)

    def low_rank(update: LowRank) -> LowRank:
        name = named(update.parameter)
        if name == update.parameter:
            return update
        module, _, leaf = name.rpartition(".")
        return replace(update, module=module, name=leaf if update.name is not None else None)

    def whole(item: _Whole) -> _Whole:
        return replace(item, parameter=named(item.parameter))

    result = replace(
        adapter,
        low_rank=tuple(map(low_rank, adapter.low_rank)),
        saved=tuple(map(whole, adapter.saved)),
        added=tuple(map(whole, adapter.added)),
        rows=tuple(map(whole, adapter.rows)),
        computed=tuple(map(whole, adapter.computed)),
    )
    return adapter if result == adapter else replace(result, renamed=True)
