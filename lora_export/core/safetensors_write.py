"""Writing a safetensors file from tensors, block by block."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from lora_export.core.files import open_output, storage_errors
from lora_export.core.safetensors_file import encode_header
from lora_export.core.tensors import iter_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.tensors import Tensor

__all__ = ["write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write `tensors`, sorted by name, into a private folder, synced; return the file's SHA-256.

    Raises:
        StorageError: The disk refuses.
        InputError: A tensor's own file ends too early.
    """
    names = sorted(tensors)
    header, _ = encode_header([(n, tensors[n].dtype, tensors[n].shape) for n in names], metadata)
    digest = hashlib.sha256(header)
    with storage_errors(str(path)), open_output(path) as stream:
        stream.write(header)
        for name in names:
            for block in iter_blocks(tensors[name]):
                stream.write(block)
                digest.update(block)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()
