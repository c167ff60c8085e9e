"""The merging writer: bytes against NumPy, whatever the blocks; memory, and a disk that is full."""

from __future__ import annotations

import errno
import hashlib
import os
from math import prod

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lora_export.adapters.canonical import LowRank, Saved
from lora_export.adapters.resolve import Update
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import AdapterError, InputError, StorageError
from lora_export.core.parameters import Parameter
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import MemoryTensor
from lora_export.weights import stream
from lora_export.weights.stream import base_entry, merged_entry, write_weights, zero_entry
from tests.helpers.measure import run_python


def tensor(values: np.ndarray, name: str = "w") -> MemoryTensor:
    by_numpy = {row.numpy: row for row in DTYPES.values()}
    return MemoryTensor(name, by_numpy[values.dtype], values)


def collect(entry: stream.Entry) -> np.ndarray:
    blocks = [np.array(block) for block in entry.blocks()]
    joined = np.concatenate([block.reshape(-1) for block in blocks])
    assert joined.dtype == entry.dtype.numpy
    assert joined.nbytes == entry.nbytes
    return joined.reshape(entry.shape)


@pytest.fixture
def small_blocks(monkeypatch):
    def shrink(block_bytes: int, slab_bytes: int, tile: int = 3) -> None:
        monkeypatch.setattr(stream, "BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(stream, "_SLAB_BYTES", slab_bytes)
        monkeypatch.setattr(stream, "_TILE", tile)

    return shrink


RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((23, 17)).astype(np.float32)
A = RANDOM.standard_normal((5, 17)).astype(np.float32)
B = RANDOM.standard_normal((23, 5)).astype(np.float32)
SCALE = 1.75
MERGED = W.astype(np.float64) + SCALE * (B.astype(np.float64) @ A.astype(np.float64))


def update(parameter: Parameter) -> Update:
    return Update(parameter, LowRank("m", tensor(A, "A"), tensor(B, "B"), SCALE))


def linear(dtype: str = "float32", *, transposed: bool = False) -> Parameter:
    return Parameter("m.weight", W.shape, dtype, "Linear", transposed)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    wide = found.astype(np.float64)
    return float(np.linalg.norm(wide - expected) / np.linalg.norm(expected))


# --------------------------------------------------------------------------------------- base


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_base_is_stored_bit_for_bit_in_the_graphs_layout(dtype, transposed):
    values = W.astype(DTYPES[dtype].numpy)
    entry = base_entry(linear(dtype, transposed=transposed), tensor(values))
    found = collect(entry)
    expected = values.T if transposed else values
    assert entry.shape == expected.shape
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("source", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("target", ["float16", "float32", "bfloat16"])
def test_the_base_is_cast_as_numpy_casts(source, target):
    values = W.astype(DTYPES[source].numpy)
    found = collect(base_entry(linear(target), tensor(values)))
    # float64 goes through float32, the dtype of all arithmetic.
    expected = values.astype(np.float32).astype(DTYPES[target].numpy)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (2, 3, 4), (1, 1)])
def test_shapes_of_every_kind(shape):
    values = np.arange(prod(shape), dtype=np.float32).reshape(shape)
    parameter = Parameter("p", shape, "float32", "buffer")
    assert collect(base_entry(parameter, tensor(values))).tobytes() == values.tobytes()


def test_integers_are_kept_and_cast_as_integers():
    values = np.array([2**40 + 1, -3], np.int64)
    parameter = Parameter("p", (2,), "int64", "buffer")
    np.testing.assert_array_equal(collect(base_entry(parameter, tensor(values))), values)
    small = Parameter("p", (2,), "int32", "buffer")
    source = tensor(np.array([7, -3], np.int64))
    np.testing.assert_array_equal(collect(base_entry(small, source)), [7, -3])


def test_a_value_that_the_dtype_cannot_hold_names_the_tensor():
    values = np.array([1.0, 1e6], ml_dtypes.bfloat16)
    parameter = Parameter("layer.weight", (2,), "float16", "Linear")
    with pytest.raises(InputError, match=r"float16 cannot hold.*'layer\.weight'"):
        collect(base_entry(parameter, tensor(values)))


@pytest.mark.parametrize("target", ["float32", "float16"])
def test_a_float64_value_that_the_dtype_cannot_hold_is_refused_too(target):
    values = np.array([1.0, 1e300])
    parameter = Parameter("layer.weight", (2,), target, "Linear")
    with (
        np.errstate(over="ignore"),
        pytest.raises(InputError, match=r"cannot hold.*'layer\.weight'"),
    ):
        collect(base_entry(parameter, tensor(values)))


def test_zeros_for_what_only_adapters_have():
    entry = zero_entry(Parameter("head.weight", (3, 4), "float16", "Linear", transposed=True))
    found = collect(entry)
    assert found.shape == (4, 3)
    assert found.dtype == np.float16
    assert not found.any()


# ------------------------------------------------------------------------------------- merged


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("base_is_stored", [False, True])
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 1e-7), ("float16", 3e-4), ("bfloat16", 3e-3)]
)
def test_merged_equals_numpy_in_float64(transposed, base_is_stored, dtype, bound):
    parameter = linear(dtype, transposed=transposed)
    held = W.astype(parameter.stored_dtype.numpy)
    expected = held.astype(np.float64) + (MERGED - W.astype(np.float64))
    base = np.ascontiguousarray(held.T) if transposed and base_is_stored else held
    entry = merged_entry(update(parameter), tensor(base), base_is_stored=base_is_stored)
    found = collect(entry)
    assert found.shape == parameter.stored_shape
    assert relative(found, expected.T if transposed else expected) < bound


def test_merging_rounds_once_from_float32():
    values = W.astype(np.float16)
    found = collect(merged_entry(update(linear("float16")), tensor(values), base_is_stored=False))
    exact = (values.astype(np.float64) + (MERGED - W)).astype(np.float16)
    # Rounding twice, or adding in float16, misses the nearest number about one time in ten.
    assert (found != exact).mean() < 0.01


def test_an_embedding_is_merged_in_its_own_layout():
    table = RANDOM.standard_normal((9, 4)).astype(np.float32)
    a = RANDOM.standard_normal((2, 9)).astype(np.float32)
    b = RANDOM.standard_normal((4, 2)).astype(np.float32)
    parameter = Parameter("e.weight", (9, 4), "float32", "Embedding")
    low_rank = LowRank("e", tensor(a), tensor(b), 3.0, embedding=True)
    found = collect(merged_entry(Update(parameter, low_rank), tensor(table), base_is_stored=False))
    expected = table.astype(np.float64) + 3.0 * (b.astype(np.float64) @ a).T
    assert relative(found, expected) < 1e-7


def test_a_saved_parameter_replaces_whatever_the_base_has():
    values = RANDOM.standard_normal((7, 17)).astype(np.float32)
    parameter = linear(transposed=True)
    entry = merged_entry(
        Update(parameter, saved=Saved("m.weight", tensor(values))), None, base_is_stored=True
    )
    assert entry.shape == (17, 7)  # another width than the parameter's
    np.testing.assert_array_equal(collect(entry), values.T)


def test_a_saved_parameter_is_cast_and_checked():
    parameter = Parameter("head.bias", (2,), "float16", "Linear")
    saved = Saved("head.bias", tensor(np.array([0.1, 2.0], np.float32)))
    found = collect(merged_entry(Update(parameter, saved=saved), None, base_is_stored=True))
    np.testing.assert_array_equal(found, np.array([0.1, 2.0], np.float16))
    for bad, error in ((1e6, InputError), (np.nan, AdapterError)):
        saved = Saved("head.bias", tensor(np.array([0.1, bad], np.float32)))
        with pytest.raises(error, match=r"head\.bias|'w'"):
            collect(merged_entry(Update(parameter, saved=saved), None, base_is_stored=True))


def test_a_merged_value_that_the_dtype_cannot_hold_is_refused():
    low_rank = LowRank("m", tensor(A * 1e4), tensor(B * 1e4), 1.0)
    with pytest.raises(InputError, match=r"float16 cannot hold.*'m\.weight'"):
        collect(
            merged_entry(
                Update(linear("float16"), low_rank),
                tensor(W.astype(np.float16)),
                base_is_stored=False,
            )
        )


def test_a_merged_value_that_overflows_float32_is_refused():
    low_rank = LowRank("m", tensor(np.full_like(A, 1e20)), tensor(np.full_like(B, 1e20)), 1.0)
    with np.errstate(over="ignore"), pytest.raises(InputError):
        collect(merged_entry(Update(linear(), low_rank), tensor(W), base_is_stored=False))


def test_an_update_of_what_the_base_lacks_is_an_error():
    with pytest.raises(InputError, match=r"no value for 'm\.weight'"):
        merged_entry(update(linear()), None, base_is_stored=False)


# ------------------------------------------------------------------- blocks change no byte


@given(
    block=st.integers(1, 3000),
    slab=st.integers(1, 2000),
    tile=st.integers(1, 40),
    transposed=st.booleans(),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_the_base_has_the_same_bytes_whatever_the_blocks(block, slab, tile, transposed, dtype):
    parameter = linear(dtype, transposed=transposed)
    values = W.astype(parameter.stored_dtype.numpy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK_BYTES", block)
        patch.setattr(stream, "_SLAB_BYTES", slab)
        patch.setattr(stream, "_TILE", tile)
        found = collect(base_entry(parameter, tensor(values)))
    expected = np.ascontiguousarray(values.T if transposed else values)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (100, 100), (999, 10), (10, 99999), (700, 800)])
def test_merged_values_are_right_whatever_the_blocks(transposed, sizes, small_blocks):
    small_blocks(*sizes)
    parameter = linear(transposed=transposed)
    found = collect(merged_entry(update(parameter), tensor(W), base_is_stored=False))
    assert relative(found, MERGED.T if transposed else MERGED) < 1e-7


def test_merging_from_the_export_gives_the_bytes_of_merging_from_the_checkpoint():
    parameter = linear(transposed=True)
    stored = tensor(collect(base_entry(parameter, tensor(W))))
    one = collect(merged_entry(update(parameter), stored, base_is_stored=True))
    other = collect(merged_entry(update(parameter), tensor(W), base_is_stored=False))
    assert one.tobytes() == other.tobytes()


def test_blocks_are_bounded(small_blocks):
    small_blocks(200, 400)
    for transposed in (False, True):
        entry = merged_entry(update(linear(transposed=transposed)), tensor(W), base_is_stored=False)
        sizes = [block.nbytes for block in entry.blocks()]
        assert len(sizes) > 3
        assert max(sizes) <= 400


# --------------------------------------------------------------------------------------- file


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


# ------------------------------------------------------------------------------------- memory

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
