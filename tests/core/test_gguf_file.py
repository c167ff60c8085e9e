"""The GGUF container: what the gguf package writes is read, and no count in a header is trusted."""

from __future__ import annotations

import struct

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_export.core.errors import InputError, LoraExportError, UnsupportedError
from lora_export.core.gguf_file import read_gguf
from lora_export.core.tensors import read_all

VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def write(path, *, alignment=None, raw_dtype=None):
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -5)
    writer.add_uint32("a.u32", 1 << 31)
    writer.add_int32("a.i32", -(1 << 30))
    writer.add_uint64("a.u64", 1 << 63)
    writer.add_int64("a.i64", -(1 << 60))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", val=True)
    writer.add_string("a.text", "ö")
    writer.add_array("a.list", [1, 2, 3])
    writer.add_array("a.texts", ["x", "yz"])
    writer.add_tensor("t", VALUES)
    writer.add_tensor("h", VALUES[0].astype(np.float16))
    writer.add_tensor(
        "b",
        VALUES[0].astype(ml_dtypes.bfloat16).view(np.uint16).view(np.uint8),
        raw_dtype=gguf.GGMLQuantizationType.BF16,
    )
    if raw_dtype is not None:
        writer.add_tensor("q", np.zeros((1, 34), np.uint8), raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [None, 64])
def test_what_the_package_writes(tmp_path, alignment):
    tensors, metadata = read_gguf(write(tmp_path / "x.gguf", alignment=alignment))
    assert {key: metadata[key] for key in metadata if key.startswith("a.")} == {
        "a.u8": 200,
        "a.i8": -3,
        "a.u16": 60000,
        "a.i16": -5,
        "a.u32": 1 << 31,
        "a.i32": -(1 << 30),
        "a.u64": 1 << 63,
        "a.i64": -(1 << 60),
        "a.f32": 0.5,
        "a.f64": 0.1,
        "a.bool": True,
        "a.text": "ö",
        "a.list": None,
        "a.texts": None,
    }
    np.testing.assert_array_equal(read_all(tensors["t"]), VALUES)
    np.testing.assert_array_equal(read_all(tensors["h"]), VALUES[0])
    np.testing.assert_array_equal(read_all(tensors["b"]).astype(np.float32), VALUES[0])


def test_quantized_tensors_are_refused(tmp_path):
    path = write(tmp_path / "x.gguf", raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(UnsupportedError, match=r"'q' .* quantized"):
        read_gguf(path)


def header(tensors=0, values=0, body=b"", version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, values) + body


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"t", axes=(1,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)


DAMAGED = {
    "empty": b"",
    "magic": header(magic=b"GGML"),
    "many values": header(values=1 << 62),
    "many tensors": header(tensors=1 << 62),
    "long name": header(values=1, body=struct.pack("<Q", 1 << 62)),
    "not UTF-8": header(values=1, body=text(b"\xff")),
    "unknown type": header(values=1, body=text(b"k") + struct.pack("<I", 77)),
    "long array": header(values=1, body=text(b"k") + struct.pack("<IIQ", 9, 0, 1 << 60)),
    "long texts": header(values=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 60)),
    "array of arrays": header(values=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1)),
    "twice": header(values=2, body=2 * (text(b"k") + struct.pack("<IB", 0, 1))),
    "axes": header(tensors=1, body=tensor(axes=(1,) * 9)),
    "past the end": header(tensors=1, body=tensor(axes=(1 << 40, 1 << 40))),
    "far away": header(tensors=1, body=tensor(offset=1 << 60)),
    "twice a tensor": header(tensors=2, body=tensor(axes=(0,)) * 2),
    "alignment": header(values=1, body=text(b"general.alignment") + struct.pack("<II", 4, 0)),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path, case):
    path = tmp_path / "x.gguf"
    path.write_bytes(DAMAGED[case])
    with pytest.raises(InputError, match="not a valid GGUF"):
        read_gguf(path)


def test_overlapping_tensors(tmp_path):
    body = tensor(axes=(8,)) + tensor(b"u", axes=(8,), offset=4)
    path = tmp_path / "x.gguf"
    path.write_bytes(header(tensors=2, body=body) + bytes(256))
    with pytest.raises(InputError, match="overlaps"):
        read_gguf(path)


def test_versions_and_missing_files(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(header(version=1))
    with pytest.raises(UnsupportedError, match="version 1"):
        read_gguf(path)
    with pytest.raises(InputError, match="cannot read"):
        read_gguf(tmp_path / "none.gguf")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_clean_error(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    raw = bytearray(write(folder / "good.gguf").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "bad.gguf"
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        tensors, _ = read_gguf(path)
    except LoraExportError:
        return
    for each in tensors.values():
        assert read_all(each).size * each.dtype.itemsize_bytes <= len(raw)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=400), tensors=st.integers(0, 1 << 63), values=st.integers(0, 9))
def test_any_bytes_give_a_clean_error(body, tensors, values, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    path.write_bytes(header(tensors=tensors, values=values, body=body))
    try:
        read_gguf(path)
    except LoraExportError:
        return
