"""Readers of archives: arrays of NumPy, bundles."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.bundle.archive import open_archive
from lora_export.bundle.tar_file import end_of_archive, header_of, padding_of
from lora_export.core.npz_file import npz_bytes
from lora_export.ondevice.bundle.bundle_index import encode_index, parse_index
from lora_export.ondevice.judge.golden_files import read_arrays, read_golden, valid_rows
from lora_export.ondevice.trt.build_settings import BuildSettings
from tools.reader_fuzz.formats import mutate_npy, zip_mutator
from tools.reader_fuzz.mutate_bytes import EXTREMES, mutate_bytes
from tools.reader_fuzz.mutate_tables import mutate_json
from tools.reader_fuzz.reader import Reader, Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from random import Random

    from tools.reader_fuzz.reader import Mutator

__all__ = ["ARCHIVES"]

_NPZ: Final[tuple[Mutator, ...]] = (
    mutate_bytes,
    zip_mutator({".npy": (mutate_npy, mutate_npy, mutate_bytes)}),
)
_BLOCK: Final = 512
_FOLDER: Final = "one"
_INDEX: Final = f"{_FOLDER}/bundle.json"


def _stored(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _npz(_fixed: Path) -> Target:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(3), "c": np.array(["x", "yz"])}
    seeds = ({"x.npz": npz_bytes(arrays)}, {"x.npz": _stored(arrays)})
    return Target(seeds, {"x.npz": _NPZ}, lambda folder: read_arrays(folder / "x.npz"))


def _golden(_fixed: Path) -> Target:
    arrays = {
        "count": np.array(2),
        "effect": np.array(0.5),
        "switch": np.array(4),
        **{f"{i}.input.ids": np.ones((1, 3), np.int64) for i in range(2)},
        **{f"{i}.mask": np.ones((1, 3), bool) for i in range(2)},
        **{f"{i}.expected": np.ones((1, 3, 4), np.float32) for i in range(2)},
    }
    seeds = ({"x.npz": npz_bytes(arrays)}, {"x.npz": _stored(arrays)})
    return Target(seeds, {"x.npz": _NPZ}, _read_golden)


def _read_golden(folder: Path) -> None:
    golden = read_golden(folder / "x.npz")
    for case, expected in zip(golden.cases, golden.expected, strict=True):
        valid_rows(expected, case, per_token=True)


def _table(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the index of a bundle, but its digest."""
    engine = {
        "onnx": "base.onnx", "weights": ["w.bin"], "defaults": "defaults.npz",
        "settings": BuildSettings("fp16").to_json(),
        "refit": {},
    }  # fmt: skip
    check = {
        "graph": "base", "encoder": None, "empty": {"past": [2, 4, "float32"]},
        "reading": {"outputs": ["logits"], "per_token": True, "choices": False, "last": False},
        "buffers": {"b": [2, 4, 8, "float32"]}, "golden": "golden.npz", "reason": None,
        "pack": None,
        "refit": None, "row": None, "width": 3,
    }  # fmt: skip
    return {
        "name": _FOLDER, "tool": "1", "target": "ort-cpu", "dtype": "float32",
        "base_fingerprint": "a" * 64,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in files.items()
        },
        "graphs": {"base": {"onnx": "base.onnx", "engine": engine, "reason": None}},
        "checks": {"base": check},
        "latency": {"rounds": 3, "max_ratio": 1.1, "feeds": "feeds.npz", "reason": None},
    }  # fmt: skip


_FILES: Final = {
    name: name.encode() * 60
    for name in ("base.onnx", "w.bin", "defaults.npz", "golden.npz", "feeds.npz")
}


def _index(_fixed: Path) -> Target:
    seed = {"bundle.json": encode_index(_table(_FILES))}
    return Target(
        (seed,), {"bundle.json": (_mutate_index, _mutate_index, mutate_json)}, _read_index
    )


def _read_index(folder: Path) -> None:
    parse_index((folder / "bundle.json").read_bytes(), "bundle.json")


def _mutate_index(chance: Random, data: bytes) -> bytes:
    """Return an index with another table, whose digest is right where that can be."""
    changed = mutate_json(chance, data)
    try:
        table = json.loads(changed)
        return encode_index({**table, "x": 1}) if isinstance(table, dict) else changed
    except (ValueError, RecursionError, UnicodeError):
        return changed


def _tar(files: Mapping[str, bytes]) -> bytes:
    out = bytearray()
    for name, data in files.items():
        out += header_of(_FOLDER, name, len(data), 0o644) + data + padding_of(len(data))
    return bytes(out) + end_of_archive(len(out))


def _bundle(_fixed: Path) -> Target:
    plain = _tar({"bundle.json": encode_index(_table(_FILES)), **_FILES})
    seeds = ({"x.tar": plain}, {"x.tar": gzip.compress(plain, mtime=0)})
    return Target(seeds, {"x.tar": (mutate_bytes, _mutate_tar, _mutate_tar)}, _read_bundle)


def _read_bundle(folder: Path) -> None:
    with open_archive(folder / "x.tar") as archive:
        for _, blocks in archive.files():
            for _ in blocks:
                pass


_FIELDS: Final = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "type": (156, 1),
"link": (157, 100),
                  "magic": (257, 8), "prefix": (345, 155)}  # fmt: skip
_TEXTS: Final = (
    b"",
    b"/etc/passwd",
    b"../x",
    b"one/../x",
    b"one/",
    b"one/bundle.json",
    b"one//x",
    b"\xff\xfe",
    b"a" * 100,
)


def _mutate_tar(chance: Random, data: bytes) -> bytes:
    """Return an archive with another header, whose checksum is right."""
    if not data.startswith(_FOLDER.encode()):
        return mutate_bytes(chance, data)
    changed = bytearray(data)
    heads = [at for at in range(0, len(data), _BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    head = chance.choice(heads)
    name = chance.choice(list(_FIELDS))
    start, width = _FIELDS[name]
    if name == "type":
        value = bytes([chance.choice(b"0\x00123456SgxKLZ")])
    elif name == "size":
        number = chance.choice(EXTREMES)
        octal = f"{number:o}".encode()
        value = octal[:11] if chance.randrange(2) else b"\x80" + number.to_bytes(11, "big")
    else:
        value = chance.choice(_TEXTS)
    changed[head + start : head + start + width] = value[:width].ljust(width, b"\0")
    if not chance.randrange(5):  # an entry twice
        changed[head:head] = changed[head : head + _BLOCK]
    changed[head + 148 : head + 156] = b" " * 8
    total = sum(changed[head : head + _BLOCK])
    changed[head + 148 : head + 156] = b"%06o\0 " % total
    return bytes(changed)


ARCHIVES: Final[Mapping[str, Reader]] = {
    "npz": Reader(_npz),
    "golden": Reader(_golden),
    "bundle-index": Reader(_index),
    "bundle": Reader(_bundle),
}
"""The readers of archives."""
