"""Types of GGML: blocks read in parts, and the formulas of the common ones written out."""

from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import pytest

from lora_export.core.dtypes import DTYPES
from lora_export.core.gguf_library import dequantize, ggml_types
from lora_export.core.tensors import bytes_of, read_all, sha256_of_tensor
from lora_export.weights.gguf.gguf_parts import read_parts
from lora_export.weights.gguf.gguf_weights import _weight
from tests.helpers.gguf_bases import random_blocks, write_gguf

TYPES = {each.name.upper(): each for each in ggml_types().values()}
NAME = "blk.0.ffn_up.weight"


def opened(folder, kind, raw):
    path = write_gguf(folder / "model.gguf", "llama", {}, {NAME: (raw, kind)})
    return _weight(read_parts(path), NAME, "up", DTYPES["float32"])


def test_every_type_that_the_package_dequantizes_is_read():
    assert set(TYPES) == {kind.name for kind in gguf.quants._type_traits} - {"BF16"}
    assert len(TYPES) >= 22


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_a_weight_is_the_packages_and_so_is_any_part_of_it(kind, tmp_path):
    raw = random_blocks(kind, 6, 512)
    whole = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    tensor = opened(tmp_path, kind, raw)
    assert tensor.shape == whole.shape == (6, 512)
    assert np.array_equal(read_all(tensor), whole)
    for first, last in ((0, 1), (31, 290), (511, 512)):
        assert np.array_equal(tensor.read_columns(first, last), whole[:, first:last])
    buffer = np.empty(4 * 700, np.uint8)
    tensor.read_into(bytes_of(buffer), 4 * 300)
    assert np.array_equal(buffer.view(np.float32), whole.reshape(-1)[300:1000])


def half(raw):
    return float(raw.view(np.float16)[0])


def q8_0(block):
    return half(block[:2]) * block[2:].view(np.int8).astype(float)


def q4_0(block):
    codes = np.concatenate([block[2:] & 15, block[2:] >> 4]).astype(float)
    return half(block[:2]) * (codes - 8)


def q4_k(block):
    """Return ``d · sc · q − dmin · m``, eight groups of 32 (ggml ``dequantize_row_q4_K``)."""
    d, low, packed, codes = half(block[:2]), half(block[2:4]), block[4:16], block[16:]
    values = []
    for group in range(8):
        if group < 4:
            scale, least = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4)
            least = (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4)
        own = codes[32 * (group // 2) : 32 * (group // 2) + 32] >> (4 * (group % 2)) & 15
        values += [d * int(scale) * int(q) - low * int(least) for q in own]
    return np.array(values)


def q6_k(block):
    """Return ``d · sc · (q − 32)``, sixteen groups of 16 (ggml ``dequantize_row_q6_K``)."""
    low, high, scales, d = (
        block[:128],
        block[128:192],
        block[192:208].view(np.int8),
        half(block[208:]),
    )
    values = np.empty(256)
    for part in range(2):
        for at in range(32):
            h = int(high[32 * part + at])
            first, second = int(low[64 * part + at]), int(low[64 * part + at + 32])
            nibbles = (first & 15, second & 15, first >> 4, second >> 4)
            for quarter, nibble in enumerate(nibbles):
                q = nibble | ((h >> (2 * quarter)) & 3) << 4
                scale = int(scales[8 * part + 2 * quarter + at // 16])
                values[128 * part + 32 * quarter + at] = d * scale * (q - 32)
    return values


@pytest.mark.parametrize("formula", [q8_0, q4_0, q4_k, q6_k], ids=lambda f: f.__name__)
def test_common_types_are_their_formulas(formula):
    kind = TYPES[formula.__name__.upper()]
    blocks = random_blocks(formula.__name__.upper(), 1, kind.values * 8).reshape(
        -1, kind.count_bytes
    )
    expected = np.array([formula(block) for block in blocks])
    found = dequantize(blocks, kind)
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_a_large_weight_is_read_in_blocks(tmp_path):
    raw = np.tile(random_blocks("Q4_K", 4, 4096), (1024, 1))
    tensor = opened(tmp_path, "Q4_K", raw)
    digest = sha256_of_tensor(tensor)
    tracemalloc.start()
    assert sha256_of_tensor(tensor) == digest
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tensor.shape == (4096, 4096)
    assert peak < 48 << 20
