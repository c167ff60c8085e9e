"""The files of a served model: its index, its tensors, its budget; damaged and hostile ones too."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_export.triton.serving.index import BadIndexError, Watch, parse_index
from lora_export.triton.serving.lru import ByteBudget, TooLargeError
from lora_export.triton.serving.tensors import TensorError, TensorFile, read_tensors

TABLE = {
    "format": "lora-export-serving/1", "way": "swappable", "graph": "g.onnx", "graph_bytes": 1,
    "weights": "w", "base": True, "fingerprint": "f", "inputs": ["x"], "outputs": ["y"],
    "adapters": {"a": {"file": "a.safetensors", "nbytes": 3, "row": 0, "width": None}},
    "matrices": {},
}  # fmt: skip


def changed(**keys: object) -> bytes:
    return json.dumps({**TABLE, **keys}).encode()


def line(**keys: object) -> bytes:
    return changed(adapters={"a": {**TABLE["adapters"]["a"], **keys}})


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b"\xff", b"[" * 100_000, changed(format="lora-export-serving/2"),
        changed(way="fast"), changed(graph="/etc/passwd"), changed(weights="../w"),
        line(file="a/../../b"), line(nbytes="3"), line(row=None), line(width="2"),
        changed(adapters={"../a": TABLE["adapters"]["a"]}), changed(adapters=[1]),
    ],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(tmp_path, data):
    with pytest.raises(BadIndexError):
        parse_index(data, tmp_path)


def test_a_change_is_seen_once_and_a_damaged_index_is_told_once(tmp_path):
    path, other = tmp_path / "serving.json", tmp_path / "next"
    path.write_bytes(changed())
    watch = Watch(tmp_path)
    first = watch.changed()
    assert first is not None
    assert first.adapters["a"].nbytes == 3
    assert watch.changed() is None
    other.write_bytes(line(nbytes=4))
    other.replace(path)
    second = watch.changed()
    assert second is not None
    assert second.adapters["a"].nbytes == 4
    other.write_bytes(b"{")
    other.replace(path)
    with pytest.raises(BadIndexError):
        watch.changed()
    assert watch.changed() is None


def test_tensors_are_those_that_safetensors_wrote(tmp_path):
    values = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([], np.float16).reshape(0, 4),
        "c": np.array(7, np.int64),
    }
    save_file(values, tmp_path / "t", metadata={"k": "v"})
    found, metadata = read_tensors(tmp_path / "t")
    assert metadata == {"k": "v"}
    assert set(found) == set(values)
    for name, each in values.items():
        assert found[name].dtype == each.dtype
        assert np.array_equal(found[name], each)
    with TensorFile(tmp_path / "t") as file:
        assert file.names == list(found)
        assert np.array_equal(file.read("a"), values["a"])
        with pytest.raises(TensorError):
            file.read("nobody")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    save_file({"a": np.arange(6, dtype=np.float32)}, tmp_path / "t")
    data = (tmp_path / "t").read_bytes()
    for length in range(0, len(data) - 1, 7):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(TensorError):
            read_tensors(tmp_path / "cut")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, entry):
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "t").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(TensorError):
        read_tensors(tmp_path / "t")


def test_the_least_recently_used_goes_before_the_next_is_loaded():
    budget: ByteBudget[str] = ByteBudget(10)
    alive: list[str] = []

    def load(name: str) -> str:
        assert budget.used_bytes <= 10 - 4  # room was made before
        alive.append(name)
        return name

    for name in ("a", "b", "a", "c", "a", "b"):
        assert budget.get(name, 4, lambda name=name: load(name)) == name
    assert alive == ["a", "b", "c", "b"]  # a was used in between and stayed
    assert budget.used_bytes == 8
    with pytest.raises(TooLargeError):
        budget.get("d", 11, lambda: "d")
    with pytest.raises(RuntimeError):
        budget.get("e", 4, fail)
    assert budget.get("b", 4, fail) == "b"
    budget.keep({"b"})
    assert budget.used_bytes == 4


def fail() -> str:
    raise RuntimeError


def test_the_width_of_the_base_is_a_number_or_left_out(tmp_path):
    assert parse_index(changed(), tmp_path).base_width is None
    assert parse_index(changed(base_width=2), tmp_path).base_width == 2
    with pytest.raises(BadIndexError):
        parse_index(changed(base_width="2"), tmp_path)
