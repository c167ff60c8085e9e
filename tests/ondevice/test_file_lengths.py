"""Files that are longer than their kind can be: refused by their length, before they are read."""

from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lora_export.ondevice.device_files import sha256_of_file

if TYPE_CHECKING:
    from pathlib import Path


def _weights(path: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3, np.float32), "b": np.ones(2, np.float16)}, path)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.npz", "a.onnx", "a.onnx_adapter", "a.safetensors"])
def test_a_file_longer_than_its_kind_can_be_is_not_hashed(name: str, tmp_path: Path) -> None:
    path = _weights(tmp_path / name)
    assert sha256_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    os.truncate(path, 10 << 30)
    with pytest.raises(OSError, match="it is larger than") as error:
        sha256_of_file(path)
    assert error.value.errno == errno.EFBIG


def test_a_damaged_weight_file_of_its_length_is_hashed(tmp_path: Path) -> None:
    path = _weights(tmp_path / "a.safetensors")
    for data in (b"", b"\0" * 100, b"\xff" * 100, path.read_bytes() + b"more"):
        path.write_bytes(data)
        assert sha256_of_file(path) == hashlib.sha256(data).hexdigest()
