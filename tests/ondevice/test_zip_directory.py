"""Archives that announce something else than they hold: NumPy's and PyTorch's alike."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
import torch

from lora_export.core.errors import InputError
from lora_export.core.torch_file import read_torch_file
from lora_export.ondevice.device_errors import ExportDirectoryError
from lora_export.ondevice.judge.golden_files import read_arrays
from lora_export.ondevice.zip_directory import is_zip, read_directory

ENTRY, END = b"PK\x01\x02", b"PK\x05\x06"
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"


def archive(members, *, kind=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as written:
        for name, data in members:
            written.writestr(zipfile.ZipInfo(name), data, compress_type=kind)
    return buffer.getvalue()


def put(data, sign, offset, code, value):
    """Return an archive with another number in the last entry or the end of its directory."""
    place = data.rindex(sign) + offset
    packed = struct.pack(code, value)
    return data[:place] + packed + data[place + len(packed) :]


GOOD = archive([("a", b"first"), ("b", b"second")])
TWO = archive([("a", b"x" * 40), ("b", b"x" * 40)])
BAD = {
    "empty": (b"", "shorter"),
    "truncated": (GOOD[:-1], "does not end"),
    "prefixed": (b"x" + GOOD, "place is given as bytes"),
    "followed": (GOOD + b"x", "does not end"),
    "a comment": (put(GOOD, END, 20, "<H", 1) + b"x", "does not end"),
    "disks": (put(GOOD, END, 4, "<H", 1), "several disks"),
    "directory elsewhere": (put(GOOD, END, 6, "<H", 1), "several disks"),
    "half of the entries": (put(GOOD, END, 8, "<H", 1), "several disks"),
    "too many entries": (put(put(GOOD, END, 8, "<H", 9), END, 10, "<H", 9), "too early"),
    "too few entries": (put(put(GOOD, END, 8, "<H", 1), END, 10, "<H", 1), "its 1 entries"),
    "encrypted": (put(GOOD, ENTRY, 8, "<H", 1), "encrypted"),
    "strongly encrypted": (put(GOOD, ENTRY, 8, "<H", 0x40), "encrypted"),
    "a member's disk": (put(GOOD, ENTRY, 34, "<H", 3), "another disk"),
    "method": (put(GOOD, ENTRY, 10, "<H", 14), "the method 14"),
    "size": (put(GOOD, ENTRY, 24, "<L", 1 << 31), "compressed by the method 0"),
    "both sizes": (put(put(GOOD, ENTRY, 24, "<L", 1 << 31), ENTRY, 20, "<L", 1 << 31), "passes"),
    "no wide size": (put(GOOD, ENTRY, 24, "<L", 0xFFFFFFFF), "has no size"),
    "place": (put(GOOD, ENTRY, 42, "<L", 1 << 31), "lies past"),
    "another's place": (put(TWO, ENTRY, 42, "<L", 0), "is not where"),
    "equal names": (archive([("a", b"1"), ("c", b"2")]).replace(b"c", b"a"), "two members 'a'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_directory_that_lies_is_refused(case) -> None:
    data, problem = BAD[case]
    with pytest.raises(ValueError, match=problem):
        read_directory(io.BytesIO(data))


def test_members_that_overlap() -> None:
    inner = archive([("b", b"x")])[:32]  # a header and its data, inside the data of another
    data = archive([("a", inner + b"12345678"), ("b", b"x")])
    place = data.index(inner)
    with pytest.raises(ValueError, match="lie over each other"):
        read_directory(io.BytesIO(put(data, ENTRY, 42, "<L", place)))


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_zipfile_writes(kind) -> None:
    data = archive([("a", b"a" * 500), ("ü/b", b"")], kind=kind)
    members = read_directory(io.BytesIO(data))
    assert {name: each.size_bytes for name, each in members.items()} == {"a": 500, "ü/b": 0}
    assert is_zip(io.BytesIO(data))
    assert not is_zip(io.BytesIO(b"\x80\x02"))


def npz(header, data=bytes(12), *, version=b"\x01\x00"):
    text = header.encode("latin-1") + b"\n"
    width = 2 if version == b"\x01\x00" else 4
    body = b"\x93NUMPY" + version + len(text).to_bytes(width, "little") + text + data
    return archive([("a.npy", body)])


BAD_ARRAYS = {
    "does not close": HEADER[:-4],
    "objects": HEADER.replace("<f4", "|O"),
    "a structure": HEADER.replace("'<f4'", "[('a', '<f4')]"),
    "unknown": HEADER.replace("<f4", "<q9"),
    "no width": HEADER.replace("<f4", "<U0"),
    "odd width": HEADER.replace("<f4", "<f7"),
    "huge": HEADER.replace("(3,)", "(1000000000000,)"),
    "overflow": HEADER.replace("(3,)", "(4294967296, 4294967296)"),
    "zero and huge": HEADER.replace("(3,)", "(0, 9223372036854775807)"),
    "negative": HEADER.replace("(3,)", "(-1,)"),
    "fraction": HEADER.replace("(3,)", "(3.0,)"),
    "many axes": HEADER.replace("(3,)", f"({'1, ' * 40}3)"),
    "code": HEADER.replace("(3,)", "(__import__('os'),)"),
    "nested": "(" * 5000,
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_an_array_that_lies_is_refused(case, tmp_path) -> None:
    (tmp_path / "x.npz").write_bytes(npz(BAD_ARRAYS[case]))
    with pytest.raises(ExportDirectoryError, match=r"x\.npz") as caught:
        read_arrays(tmp_path / "x.npz")
    assert "a.npy" in caught.value.message


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes(order, tmp_path) -> None:
    arrays = {
        "a": np.asarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4), order=order),
        "b": np.array(3), "c": np.array([True]), "d": np.zeros((0, 3), np.int64),
        "e": np.array(["x", "üz"]), "f": np.arange(3, dtype=">i2"), "g": np.float16([1]),
    }  # fmt: skip
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        read = read_arrays(tmp_path / "x.npz")
        assert list(read) == list(arrays)
        for name, each in arrays.items():
            assert read[name].dtype == each.dtype
            np.testing.assert_array_equal(read[name], each)
            assert read[name].flags.writeable


def test_a_bomb_is_told_from_its_directory(tmp_path) -> None:
    bomb = archive([("a.npy", bytes(1 << 26))], kind=zipfile.ZIP_DEFLATED)
    (tmp_path / "x.npz").write_bytes(bomb)
    with pytest.raises(ExportDirectoryError, match="unpacks to 67108864"):
        read_arrays(tmp_path / "x.npz")
    lying = put(archive([("a.npy", bytes(1 << 20))], kind=zipfile.ZIP_DEFLATED), ENTRY, 24, "<L", 9)
    (tmp_path / "x.npz").write_bytes(lying)
    with pytest.raises(ExportDirectoryError, match="the size or the checksum"):
        read_arrays(tmp_path / "x.npz")


def test_an_archive_of_pytorch_is_not_compressed(tmp_path) -> None:
    torch.save({"a": torch.arange(100.0)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as held:
        members = [(each, held.read(each)) for each in held.namelist()]
    assert read_torch_file(tmp_path / "x.bin")["a"].shape == (100,)
    for kind, expected in ((zipfile.ZIP_DEFLATED, "is compressed"), (zipfile.ZIP_LZMA, "method")):
        (tmp_path / "x.bin").write_bytes(archive(members, kind=kind))
        with pytest.raises(InputError, match=expected):
            read_torch_file(tmp_path / "x.bin")


def test_an_archive_of_pytorch_over_several_disks(tmp_path) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "x.bin")
    data = put((tmp_path / "x.bin").read_bytes(), END, 4, "<H", 2)
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(InputError, match="say different things"):
        read_torch_file(tmp_path / "x.bin")


def test_an_older_file_that_announces_more_than_it_has(tmp_path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.zeros(300)}, path, _use_new_zipfile_serialization=False)
    assert read_torch_file(path)["a"].shape == (300,)
    path.write_bytes(path.read_bytes().replace(struct.pack("<H", 300), struct.pack("<H", 60000)))
    with pytest.raises(InputError, match="announces 60000 elements"):
        read_torch_file(path)


def test_a_view_that_repeats_its_values_without_end(tmp_path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "x.bin")
    with pytest.raises(InputError, match="take 4398046511104 bytes"):
        read_torch_file(tmp_path / "x.bin")
