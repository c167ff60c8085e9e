"""Headers read strictly: against the safetensors package both ways, and every lie refused."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import InputError, UnsupportedError
from lora_export.core.safetensors_file import encode_header, read_header
from lora_export.core.tensors import read_all

if TYPE_CHECKING:
    from pathlib import Path

TENSORS: dict[str, np.ndarray] = {
    "b.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.half": np.array([[1.5, -2.0]], np.float16),
    "brain": np.array([0.1, 3e38], ml_dtypes.bfloat16),
    "whole": np.array([-(2**40), 7], np.int64),
    "flags": np.array([True, False, True]),
    "scalar": np.array(2.5, np.float64),
    "empty": np.zeros((0, 5), np.float32),
    "naïve ☃": np.array([255, 0], np.uint8),
}


def write(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype: str, shape: list[Any], *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def test_reads_what_the_safetensors_package_writes(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt", "note": "ü"})
    tensors, metadata = read_header(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt", "note": "ü"}
    assert set(tensors) == set(TENSORS)
    for name, expected in TENSORS.items():
        read = read_all(tensors[name])
        assert tensors[name].name == name
        assert tensors[name].shape == expected.shape
        assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
        assert read.tobytes() == expected.tobytes()


def test_the_safetensors_package_reads_what_is_encoded(tmp_path):
    by_dtype = {row.numpy: row for row in DTYPES.values()}
    order = sorted(TENSORS, key=lambda name: -TENSORS[name].itemsize)
    rows = [(name, by_dtype[TENSORS[name].dtype], TENSORS[name].shape) for name in order]
    header, offsets = encode_header(rows, {"format": "lora-export/1"})
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + b"".join(TENSORS[name].tobytes() for name in order))
    assert len(header) % 64 == 0
    for name in order:
        raw = path.read_bytes()[offsets[name] : offsets[name] + TENSORS[name].nbytes]
        assert raw == TENSORS[name].tobytes()
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.metadata() == {"format": "lora-export/1"}
    loaded = load_file(path)
    assert set(loaded) == set(TENSORS)
    for name, expected in TENSORS.items():
        assert loaded[name].tobytes() == expected.tobytes(), name
        assert loaded[name].dtype == expected.dtype
    assert {n: t.shape for n, t in read_header(path)[0].items()} == {
        n: v.shape for n, v in TENSORS.items()
    }


@pytest.mark.parametrize("row", DTYPES.values(), ids=DTYPES)
def test_every_dtype_of_the_table_has_the_packages_code_and_width(row, tmp_path):
    header, _ = encode_header([("x", row, (3,))], {})
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + bytes(3 * row.itemsize_bytes))
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.get_slice("x").get_dtype() == row.safetensors
        assert opened.get_slice("x").get_shape() == [3]


LIES: dict[str, tuple[Any, bytes, int | None, str]] = {
    "length past the end": ({}, b"", 3, "announces a header of 3 bytes"),
    "huge length": ({}, b"", 2**63, "announces a header"),
    "largest length": ({}, b"", 2**64 - 1, "announces a header"),
    "not JSON": (b"{nope", b"", None, "not readable"),
    "not UTF-8": (b'{"\xff":1}', b"", None, "not readable"),
    "deeply nested": (b"[" * 200_000, b"", None, "header is not"),
    "a list": ([], b"", None, "not a table"),
    "a number": (7, b"", None, "not a table"),
    "empty header": (b"", b"", None, "not readable"),
    "duplicate names": (
        (
            b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
        ),
        b"ab",
        None,
        "occurs twice",
    ),
    "entry is a list": ({"x": []}, b"", None, "'x' is malformed"),
    "entry lacks offsets": ({"x": {"dtype": "U8", "shape": []}}, b"", None, "'x' is malformed"),
    "entry has more": ({"x": {**entry("U8", [1], 0, 1), "z": 1}}, b"a", None, "'x' is malformed"),
    "negative axis": ({"x": entry("U8", [-1], 0, 1)}, b"a", None, "malformed"),
    "two negative axes": ({"x": entry("U8", [-1, -1], 0, 1)}, b"a", None, "malformed"),
    "fractional axis": ({"x": entry("U8", [1.0], 0, 1)}, b"a", None, "malformed"),
    "boolean axis": ({"x": entry("U8", [True], 0, 1)}, b"a", None, "malformed"),
    "shape is text": ({"x": entry("U8", "1", 0, 1)}, b"a", None, "malformed"),  # type: ignore[arg-type]
    "one offset": ({"x": entry("U8", [1], 0)}, b"a", None, "malformed"),
    "three offsets": ({"x": entry("U8", [1], 0, 1, 1)}, b"a", None, "malformed"),
    "negative offset": ({"x": entry("U8", [1], -1, 0)}, b"a", None, "malformed"),
    "offsets backwards": ({"x": entry("U8", [1], 1, 0)}, b"a", None, "does not take"),
    "shape too large": ({"x": entry("F32", [2], 0, 4)}, b"abcd", None, "does not take the 4 bytes"),
    "shape overflows": (
        {"x": entry("F32", [2**62, 2**62], 0, 4)},
        b"abcd",
        None,
        "has the shape",
    ),
    "empty and too large": ({"x": entry("F32", [0, 2**62], 0, 0)}, b"", None, "has the shape"),
    "too many axes": ({"x": entry("U8", [1] * 40, 0, 1)}, b"a", None, "has the shape"),
    "overlap": (
        {"x": entry("U8", [2], 0, 2), "y": entry("U8", [2], 1, 3)},
        b"abc",
        None,
        "'y' begins at byte 1 instead of 2",
    ),
    "same range twice": (
        {"x": entry("U8", [2], 0, 2), "y": entry("U8", [2], 0, 2)},
        b"ab",
        None,
        "begins at byte 0 instead of 2",
    ),
    "hole": (
        {"x": entry("U8", [1], 0, 1), "y": entry("U8", [1], 2, 3)},
        b"abc",
        None,
        "'y' begins at byte 2 instead of 1",
    ),
    "hole at the start": ({"x": entry("U8", [1], 1, 2)}, b"ab", None, "begins at byte 1"),
    "past the end": ({"x": entry("U8", [9], 0, 9)}, b"ab", None, "take 9 bytes, but 2 follow"),
    "data left over": ({"x": entry("U8", [1], 0, 1)}, b"ab", None, "take 1 bytes, but 2 follow"),
    "metadata is text": ({"__metadata__": "x"}, b"", None, "__metadata__"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", None, "__metadata__"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(lie, tmp_path):
    header, data, length, message = LIES[lie]
    path = write(tmp_path / "x.safetensors", header, data, length=length)
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("code", ["F4", "f32", "", None, 7, ["F32"]])
def test_an_unknown_dtype_is_not_supported(code, tmp_path):
    path = write(tmp_path / "x.safetensors", {"x": entry(code, [1], 0, 4)}, b"abcd")
    with pytest.raises(UnsupportedError, match=r"'x'.*unknown dtype"):
        read_header(path)


@pytest.mark.parametrize("size", range(8))
def test_a_file_too_short_for_its_length_is_refused(size, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(InputError, match=f"only {size} bytes"):
        read_header(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.safetensors.*No such file"):
        read_header(tmp_path / "gone.safetensors")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError):
        read_header(tmp_path)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": np.ones(3, np.float32), "y": np.ones(2, np.int64)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_header(path)


def test_a_file_cut_after_its_header_was_read_is_an_error_not_a_crash(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": np.ones(1000, np.float32)}, path)
    tensors, _ = read_header(path)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 4)
    with pytest.raises(InputError, match="in the middle of data"):
        read_all(tensors["x"])


def _outcome(data: bytes, folder: Path) -> dict[str, Any] | None:
    """Read the header of `data`; None where it is refused as it should be."""
    path = folder / "fuzz.safetensors"
    path.write_bytes(data)
    try:
        tensors, _ = read_header(path)
    except (InputError, UnsupportedError):
        return None
    return {name: read_all(tensor) for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_cleanly(folder, data):
    _outcome(data, folder)


@given(st.binary(max_size=100), st.binary(max_size=20))
def test_arbitrary_headers_are_refused_cleanly(folder, header, data):
    _outcome(struct.pack("<Q", len(header)) + header + data, folder)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16", "F8_E4M3"]) | _JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 12), min_size=2, max_size=2) | _JSON,
    }
)


@given(st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), _ENTRY | _JSON, max_size=3))
def test_headers_of_the_right_form_are_accepted_only_if_the_package_does(folder, header):
    raw = json.dumps(header).encode()
    data = struct.pack("<Q", len(raw)) + raw + bytes(range(8))
    if (ours := _outcome(data, folder)) is None:
        return
    # The package is the judge of what we accept (it lacks nothing that we know).
    theirs = load_file(folder / "fuzz.safetensors")
    assert set(ours) == set(theirs)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


@given(st.data())
def test_mutated_files_are_refused_or_read_in_full(folder, data):
    path = folder / "valid.safetensors"
    if not path.exists():
        save_file({"x": np.arange(4, dtype=np.float32), "y": np.ones((2, 2), np.int8)}, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position] = data.draw(st.integers(0, 255))
    _outcome(bytes(raw), folder)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3616\n")
    with pytest.raises(InputError, match="pointer of Git LFS") as caught:
        read_header(path)
    assert "git lfs pull" in str(caught.value.hint)
