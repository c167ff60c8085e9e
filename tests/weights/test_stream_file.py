"""The written file: read by safetensors, in bounded memory, and gone when the disk is full."""

from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.core.errors import InputError, StorageError
from lora_export.core.parameters import Parameter
from lora_export.core.safetensors_file import read_header
from lora_export.weights.stream import base_entry, write_weights, zero_entry
from tests.helpers.measure import run_python
from tests.helpers.weight_entries import (
    W,
    linear,
    tensor,
)

if TYPE_CHECKING:
    from lora_export.weights import stream


def entries() -> list[stream.Entry]:
    return [
        base_entry(Parameter("b.half", (3,), "float16", "Linear"), tensor(W[0, :3])),
        base_entry(linear(transposed=True), tensor(W)),
        base_entry(Parameter("a.ids", (2,), "int64", "buffer"), tensor(np.array([1, 2], np.int64))),
        zero_entry(Parameter("z", (2, 2), "float32", "Linear")),
    ]


def test_the_file_is_read_by_the_safetensors_package(tmp_path):
    told: list[int] = []
    path = tmp_path / "x.safetensors"
    written = write_weights(path, entries(), metadata={"format": "f"}, advance=told.append)
    loaded = load_file(path)
    assert set(loaded) == {"b.half", "m.weight", "a.ids", "z"}
    np.testing.assert_array_equal(loaded["m.weight"], W.T)
    np.testing.assert_array_equal(loaded["a.ids"], [1, 2])
    raw = path.read_bytes()
    assert written.sha256 == hashlib.sha256(raw).hexdigest()
    assert written.size_bytes == len(raw)
    assert sum(told) == sum(value.nbytes for value in loaded.values())
    for name, (offset, length) in written.offsets.items():
        assert raw[offset : offset + length] == loaded[name].tobytes()
    assert read_header(path)[1] == {"format": "f"}


def test_every_tensor_is_aligned_to_its_items(tmp_path):
    written = write_weights(tmp_path / "x", entries(), metadata={})
    sizes = {entry.name: entry.dtype.itemsize_bytes for entry in entries()}
    assert all(offset % sizes[name] == 0 for name, (offset, _) in written.offsets.items())


def test_the_order_given_changes_nothing(tmp_path):
    one = write_weights(tmp_path / "1", entries(), metadata={"b": "1", "a": "2"})
    two = write_weights(tmp_path / "2", entries()[::-1], metadata={"a": "2", "b": "1"})
    assert one.sha256 == two.sha256


def test_an_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(StorageError, match="exists"):
        write_weights(tmp_path / "x", entries(), metadata={})
    assert (tmp_path / "x").read_bytes() == b"mine"


def test_a_value_refused_half_way_leaves_no_file(tmp_path):
    bad = base_entry(Parameter("y", (1,), "float16", "Linear"), tensor(np.array([1e9], np.float32)))
    with pytest.raises(InputError, match="cannot hold"):
        write_weights(tmp_path / "x", [*entries(), bad], metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr("os.write", lambda d, raw: real(d, raw[: max(1, len(raw) // 3)]))
    written = write_weights(tmp_path / "x", entries(), metadata={})
    assert written.sha256 == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    np.testing.assert_array_equal(load_file(tmp_path / "x")["m.weight"], W.T)


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int, raw: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.write", full)
    with pytest.raises(StorageError, match="No space left"):
        write_weights(tmp_path / "x", entries(), metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_is_a_storage_error_and_leaves_nothing(tmp_path):
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from lora_export.core.errors import StorageError
from lora_export.core.parameters import Parameter
from lora_export.weights.stream import write_weights, zero_entry
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
entries = [zero_entry(Parameter(f"t{i}", (50_000,), "float32", "x")) for i in range(3)]
try:
    write_weights(Path(sys.argv[1]) / "x", entries, metadata={})
except StorageError as error:
    result = error.message
"""
    answer = run_python(code, tmp_path)
    assert "File too large" in answer["result"]
    assert list(tmp_path.iterdir()) == []


MERGE = """
import resource, sys
from pathlib import Path
import numpy as np
from lora_export.adapters.canonical import LowRank
from lora_export.adapters.resolve import Update
from lora_export.core.dtypes import DTYPES
from lora_export.core.parameters import Parameter
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import MemoryTensor
from lora_export.weights.stream import merged_entry, write_weights

folder, transposed = Path(sys.argv[1]), sys.argv[2] == "True"
base = read_header(folder / "base.safetensors")[0]["w"]
parameter = Parameter("w", base.shape, "float32", "Linear", transposed)
def factor(name, *shape):
    return MemoryTensor(name, DTYPES["float32"], np.full(shape, 0.01, np.float32))
low_rank = LowRank("m", factor("a", 8, base.shape[1]), factor("b", base.shape[0], 8), 2.0)
result = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
entry = merged_entry(Update(parameter, low_rank), base, base_is_stored=False)
write_weights(folder / "out.safetensors", [entry], metadata={})
"""


@pytest.mark.parametrize("transposed", [False, True])
def test_memory_is_bounded_by_blocks_not_by_the_tensor(transposed, tmp_path):
    rows, columns = 6_400, 16_384
    size_bytes = rows * columns * 4  # 419 MB
    header = f'{{"w":{{"dtype":"F32","shape":[{rows},{columns}],"data_offsets":[0,{size_bytes}]}}}}'
    with (tmp_path / "base.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + size_bytes)  # sparse: zeros
    answer = run_python(MERGE, tmp_path, transposed)
    out = tmp_path / "out.safetensors"
    with out.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        np.testing.assert_allclose(np.frombuffer(file.read(), np.float32), 8 * 2.0 * 1e-4)
    assert out.stat().st_size > size_bytes
    out.unlink()
    # Slabs of 64 MiB: the last, the next, its transpose, its product; whatever the tensor.
    extra_bytes = answer["peak_bytes"] - answer["result"]
    assert extra_bytes < 300e6, f"{extra_bytes / 1e6:.0f} MB"


def test_a_base_file_larger_than_a_slab_streams_the_same_bytes(tmp_path, small_blocks):
    save_file({"w": W}, tmp_path / "base.safetensors")
    small_blocks(100, 200)
    base = read_header(tmp_path / "base.safetensors")[0]["w"]
    written = write_weights(
        tmp_path / "out.safetensors", [base_entry(linear(transposed=True), base)], metadata={}
    )
    assert set(written.offsets) == {"m.weight"}
    np.testing.assert_array_equal(load_file(tmp_path / "out.safetensors")["m.weight"], W.T)
