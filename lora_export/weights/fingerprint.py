"""The fingerprint of a checkpoint, by which adapters, exports and engines recognise their base.

SHA-256 over its tensors, sorted by name, of (name, dtype, shape, SHA-256 of the bytes in checkpoint
layout); of a quantized checkpoint these are the tensors in its files. Sharding, file format and
metadata do not enter. Pickles store a tied weight under each of its names and safetensors under one
only: a name that is an output or copied embedding by convention, and repeats another tensor
exactly, is left out.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.core.dtypes import to_float32
from lora_export.core.tensors import bytes_of, iter_blocks, sha256_of_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.weights.checkpoint import Checkpoint

__all__ = [
    "TIED_NAMES",
    "TensorDigest",
    "dequantized_fingerprint",
    "fingerprint",
    "fingerprint_of",
    "tensor_digests",
]

TensorDigest = tuple[str, tuple[int, ...], str]
"""dtype, shape, SHA-256 of the bytes in checkpoint layout."""

TIED_NAMES: Final = (
    "lm_head.weight",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "vocab_projector.weight",
    "embed_out.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
)


def fingerprint(checkpoint: Checkpoint, advance: Callable[[int], None] | None = None) -> str:
    """Return the fingerprint of `checkpoint` in hexadecimal, reading all of it once, in blocks.

    Args:
        checkpoint: The checkpoint.
        advance: Told the number of bytes after each block.

    Raises:
        InputError: A file ends before its tensors do.
    """
    return fingerprint_of(tensor_digests(checkpoint, advance))


def dequantized_fingerprint(
    checkpoint: Checkpoint, advance: Callable[[int], None] | None = None
) -> str:
    """Return the fingerprint of the values of all weights in float32, reading them once.

    It is that of every checkpoint with the same names and values, whatever their dtype and
    whether they are stored quantized; integers keep their dtype.

    Args:
        checkpoint: The checkpoint.
        advance: Told the number of bytes after each block.
    """
    rows: dict[str, TensorDigest] = {}
    for name, tensor in checkpoint.tensors.items():
        floating = tensor.dtype.floating
        digest = hashlib.sha256()
        for block in iter_blocks(tensor):
            values = np.frombuffer(block, tensor.dtype.numpy)
            digest.update(bytes_of(to_float32(values)) if floating else block)
            if advance is not None:
                advance(len(block))
        dtype = "float32" if floating else tensor.dtype.name
        rows[name] = (dtype, tensor.shape, digest.hexdigest())
    return fingerprint_of(rows)


def tensor_digests(
    checkpoint: Checkpoint, advance: Callable[[int], None] | None = None
) -> dict[str, TensorDigest]:
    """Return the digest of each tensor, reading all of them once; see `fingerprint`."""
    rows: dict[str, TensorDigest] = {}
    for name, tensor in checkpoint.stored.items():
        digest = sha256_of_tensor(tensor, advance)
        rows[name] = (tensor.dtype.name, tensor.shape, digest)
    return rows


def fingerprint_of(rows: Mapping[str, TensorDigest]) -> str:
    """Return the fingerprint of a checkpoint whose tensors have been hashed one by one.

    Args:
        rows: Name → (dtype, shape, SHA-256 of the bytes in hexadecimal).
    """
    content_count: dict[TensorDigest, int] = {}
    for row in rows.values():
        content_count[row] = content_count.get(row, 0) + 1
    total = hashlib.sha256()
    for name in sorted(rows):
        row = rows[name]
        if content_count[row] > 1 and name.endswith(TIED_NAMES):
            continue
        total.update(json.dumps([name, *row], separators=(",", ":")).encode())
        total.update(b"\n")
    return total.hexdigest()
