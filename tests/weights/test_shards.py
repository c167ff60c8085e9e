"""The sharding writer: limits, index, order and bytes, whatever fails in the middle."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import InputError, LoraExportError, StorageError, UsageError
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import iter_blocks
from lora_export.weights import shards
from lora_export.weights.shards import INDEX_NAME, parse_size, plan_shards, write_sharded
from lora_export.weights.stream import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

F32 = DTYPES["float32"]


def entry_of(name: str, values: np.ndarray, pieces: int = 1) -> Entry:
    by_numpy = {row.numpy: row for row in DTYPES.values()}
    return Entry(name, by_numpy[values.dtype], values.shape, lambda: np.array_split(values, pieces))


def values_of(sizes: list[int]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        f"layer.{index}.weight": random.standard_normal((size, 3)).astype(np.float32)
        for index, size in enumerate(sizes)
    }


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1", 1), ("5GB", 5 * 10**9), ("2gib", 2 << 30), (" 1.5 MiB ", 3 << 19), ("7b", 7)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "much", "0", "-1GB", "1XB", "0.1B", "1 GB 2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), limit=st.integers(1, 400))
def test_shards_keep_the_order_and_the_limit(sizes: list[int], limit: int) -> None:
    entries = [Entry(f"{i}", F32, (size, 3), tuple) for i, size in enumerate(sizes)]
    shards = plan_shards(entries, limit)
    assert [entry for group in shards.values() for entry in group] == entries
    groups = list(shards.values())
    for group in groups:
        assert len(group) == 1 or sum(entry.nbytes for entry in group) <= limit
    for group, following in itertools.pairwise(groups):  # no shard is cut short
        assert sum(entry.nbytes for entry in group) + following[0].nbytes > limit
    count = len(groups)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert list(shards) == (names if count > 1 else ["model.safetensors"])


@pytest.mark.parametrize("limit", [1, 100, 250, 10**6])
def test_every_tensor_is_where_the_index_says(limit: int, tmp_path: Path) -> None:
    values = values_of([4, 1, 9, 2, 2])
    values["counts"] = np.arange(5, dtype=np.int64)
    told: list[int] = []
    digests = write_sharded(
        tmp_path,
        [entry_of(name, each, pieces=3) for name, each in values.items()],
        max_shard_bytes=limit,
        hashed={"counts", "layer.2.weight"},
        advance=told.append,
    )
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    total = sum(each.nbytes for each in values.values())
    assert sum(told) == total
    if len(files) == 1:
        assert not (tmp_path / INDEX_NAME).exists()
        places = dict.fromkeys(values, files[0])
    else:
        index = json.loads((tmp_path / INDEX_NAME).read_text())
        places = index["weight_map"]
        count = sum(each.size for each in values.values())
        assert index["metadata"] == {"total_parameters": count, "total_size": total}
        assert list(places) == sorted(values)
        assert sorted(set(places.values())) == files
    for name, each in values.items():
        with safe_open(tmp_path / places[name], "np") as file:
            assert file.metadata() == {"format": "pt"}
            np.testing.assert_array_equal(file.get_tensor(name), each)
    assert digests == {
        name: hashlib.sha256(values[name].tobytes()).hexdigest()
        for name in ("counts", "layer.2.weight")
    }


def test_transformers_reads_such_a_checkpoint(tmp_path: Path, tiny) -> None:
    import torch
    import transformers

    base = tiny.base("llama", "text-generation")
    values = load_file(base / "model.safetensors")
    write_sharded(tmp_path, [entry_of(*item) for item in values.items()], max_shard_bytes=20_000)
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, torch.from_numpy(values[name]), rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 3])
def test_entry_of_another_length_than_its_header_says(count: int, tmp_path: Path) -> None:
    values = values_of([2, 2])
    first, second = (entry_of(*item) for item in values.items())
    wrong = replace(second, blocks=lambda: [np.zeros((count, 3), np.float32)])
    with pytest.raises(LoraExportError, match=r"layer\.1\.weight.*24 bytes"):
        write_sharded(tmp_path, [first, wrong], max_shard_bytes=10**6)


def test_truncated_source_is_named_and_no_index_is_left(tmp_path: Path) -> None:
    """A source that ends too early: the error is the reader's, and no shard passes for whole."""
    source = tmp_path / "source.safetensors"
    save_file(values_of([300, 300]), source)
    tensors, _ = read_header(source)
    with source.open("r+b") as stream:
        stream.truncate(source.stat().st_size - 40)

    def entry(name: str) -> Entry:
        tensor = tensors[name]

        def blocks() -> Iterator[np.ndarray]:
            for block in iter_blocks(tensor, 64):
                yield np.frombuffer(bytes(block), np.float32)

        return Entry(name, tensor.dtype, tensor.shape, blocks)

    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="in the middle of data"):
        write_sharded(out, [entry(name) for name in sorted(tensors)], max_shard_bytes=3600)
    assert not (out / INDEX_NAME).exists()


def test_error_of_one_thread_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "thread_count", lambda: 2)  # one of them would never come to it
    endless = 10**9

    def failing() -> Iterator[np.ndarray]:
        msg = "mine"
        raise InputError(msg, hint="")
        yield

    def long() -> Iterator[np.ndarray]:
        for _ in range(endless // 12):
            yield np.zeros((1, 3), np.float32)

    entries = [Entry("a", F32, (endless // 12, 3), long), Entry("b", F32, (1, 3), failing)]
    with pytest.raises(InputError, match="mine"):
        write_sharded(tmp_path, entries, max_shard_bytes=1)


def test_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(StorageError):
        write_sharded(
            tmp_path, [entry_of(*item) for item in values_of([2]).items()], max_shard_bytes=10**6
        )
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
