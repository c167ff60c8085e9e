"""Arrays of an archive are read as NumPy writes them, and in no other way."""

from __future__ import annotations

import io
import os
import struct
import zipfile

import numpy as np
import pytest

from lora_export.ondevice.device_errors import ExportDirectoryError
from lora_export.ondevice.judge.golden_files import read_arrays, read_golden
from lora_export.ondevice.npz_reading import DAMAGED_NPZ, read_npz

LIMITS = {"small_bytes": 1 << 20, "most_packed": 100}
HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    raw = header.encode("latin-1")
    length = struct.pack("<H" if version == 1 else "<I", len(raw))
    return b"\x93NUMPY" + bytes([version, 0]) + length + raw + data


def archive(path, method=zipfile.ZIP_DEFLATED, **members: bytes):
    with zipfile.ZipFile(path, "w", method) as target:
        for name, data in members.items():
            target.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save, tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "c": np.array(3.5),
        "d": np.zeros((0, 4), np.float16),
        "e.input.x": np.array([True, False]),
        "f": np.arange(3, dtype=">u2"),
    }
    save(tmp_path / "x.npz", **arrays)
    found = read_npz(tmp_path / "x.npz", 1 << 20, **LIMITS)
    assert found.keys() == arrays.keys()
    for name, each in arrays.items():
        np.testing.assert_array_equal(found[name], each)
        assert found[name].dtype == each.dtype


HOSTILE = {
    "a header that does not close": npy("{'descr': '<f4', 'shape': ("),
    "a header of an earlier Python": npy("{'descr': '<f4', 'shape': (3L,)", b"0" * 12),
    "objects": npy(HEADER.format("|O", "(1,)"), b"x"),
    "a record": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", b"0000"),
    "a shape without end": npy(HEADER.format("<f4", "(999999999999999999,)"), b"0000"),
    "a product without end": npy(HEADER.format("<f4", f"({'9' * 18}, {'9' * 18})"), b"0000"),
    "a size of many digits": npy(HEADER.format("<f4", f"({'9' * 5000},)"), b"0000"),
    "a size below nothing": npy(HEADER.format("<f4", "(-1,)"), b"0000"),
    "more data": npy(HEADER.format("<f4", "(1,)"), b"00000"),
    "nesting": npy("(" * 9000 + ")" * 9000),
    "an unknown dtype": npy(HEADER.format("<f9", "(1,)"), b"0" * 9),
    "an unknown version": npy(HEADER.format("<f4", "(1,)"), b"0000", version=9),
    "a long header": npy(" " * 200_000, version=2),
    "nothing": b"",
    "no array": b"x" * 100,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_arrays_are_one_error(what, tmp_path):
    path = archive(tmp_path / "x.npz", a=HOSTILE[what])
    with pytest.raises(ExportDirectoryError, match="missing or damaged"):
        read_arrays(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_anywhere_raises_nothing_else(method, tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.arange(50, dtype=np.float32))
    data = archive(tmp_path / "x.npz", method, a=buffer.getvalue()).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(200):
        raw = bytearray(data)
        for _ in range(random.integers(1, 4)):
            raw[random.integers(len(raw))] = random.integers(256)
        (tmp_path / "y.npz").write_bytes(raw[: random.integers(len(raw) // 2, len(raw) + 1)])
        try:
            read_npz(tmp_path / "y.npz", 1 << 20, **LIMITS)
        except DAMAGED_NPZ:
            continue


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(ExportDirectoryError, match="it is a named pipe"):
        read_arrays(tmp_path / "x.npz")


def test_a_count_without_end_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", count=np.array(10**15), effect=np.array(-1.0))
    with pytest.raises(ExportDirectoryError, match="does not hold its"):
        read_golden(tmp_path / "x.npz")


@pytest.mark.parametrize("mask", [np.ones((2, 3)), np.ones(6, bool), np.ones((2, 3), np.int64)])
def test_a_mask_that_is_none_is_refused(mask, tmp_path):
    case = {"0.input.x": np.ones((2, 3)), "0.mask": mask, "0.expected": np.ones((2, 4))}
    np.savez(tmp_path / "x.npz", count=np.array(1), effect=np.array(-1.0), **case)
    with pytest.raises(ExportDirectoryError, match="the mask of case 0"):
        read_golden(tmp_path / "x.npz")
