"""PyTorch's own files: equal to torch.load, and never able to run code."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from lora_export.core.dtypes import to_float32
from lora_export.core.errors import InputError, MissingRuntimeError
from lora_export.core.tensors import FileTensor, read_all
from lora_export.core.torch_file import read_torch_file


def state() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    big = torch.randn(6, 5, generator=random)
    return {
        "float32": torch.randn(3, 4, generator=random),
        "float16": torch.randn(7, generator=random).half(),
        "bfloat16": torch.randn(2, 3, generator=random).bfloat16(),
        "int64": torch.tensor([2**40, -5]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "view with an offset": big[2:4],
        "whole": big,
        "tied": big,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_equals_torch_load(zipped, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)
    read = read_torch_file(path)
    assert list(read) == list(expected)
    for name, tensor in read.items():
        values = read_all(tensor)
        theirs = expected[name]
        assert tensor.name == name
        assert tensor.shape == tuple(theirs.shape), name
        assert tensor.dtype.name == str(theirs.dtype).removeprefix("torch."), name
        exact = to_float32(values) if tensor.dtype.floating else values
        np.testing.assert_array_equal(exact.astype(np.float64), wide(theirs), err_msg=name)


def test_a_zip_is_read_lazily(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.arange(10.0), "b": torch.arange(10.0)[3:5]}, path)
    read = read_torch_file(path)
    assert all(isinstance(tensor, FileTensor) for tensor in read.values())
    raw = path.read_bytes()
    tensor = read["b"]
    assert isinstance(tensor, FileTensor)
    found = np.frombuffer(raw[tensor.start_bytes : tensor.start_bytes + 8], np.float32)
    np.testing.assert_array_equal(found, [3.0, 4.0])


def test_an_ordered_state_dict_with_metadata_is_a_table(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    torch.save(model.state_dict(), tmp_path / "x.bin")
    assert isinstance(model.state_dict(), OrderedDict)
    read = read_torch_file(tmp_path / "x.bin")
    assert {name: t.shape for name, t in read.items()} == {
        name: tuple(t.shape) for name, t in model.state_dict().items()
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_protocol_that_torch_cannot_read_safely_is_refused_without_a_warning(
    zipped, tmp_path
):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(2)}, path, pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="without running code"):
        read_torch_file(path)


def test_a_transposed_view_in_a_zip_is_read_right(tmp_path):
    matrix = torch.arange(24.0).reshape(4, 6)
    views = {"t": matrix.T, "columns": matrix[:, 1:4].bfloat16().T, "w": matrix}
    torch.save(views, tmp_path / "x.bin")
    for name, tensor in read_torch_file(tmp_path / "x.bin").items():
        values = to_float32(read_all(tensor))
        np.testing.assert_array_equal(values, views[name].float().numpy(), err_msg=name)


def test_a_transposed_view_in_a_legacy_file_is_read_right(tmp_path):
    matrix = torch.arange(6.0).reshape(2, 3)
    torch.save({"t": matrix.T}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    tensor = read_torch_file(tmp_path / "x.bin")["t"]
    np.testing.assert_array_equal(read_all(tensor), matrix.T.numpy())


class _Command:
    """Runs a command when it is unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "inside a tensor table"])
def test_a_file_that_needs_code_execution_is_refused_and_runs_nothing(form, tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "pytorch_model.bin"
    payload = _Command(str(marker))
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    elif form == "inside a tensor table":
        torch.save({"a": torch.ones(2), "b": payload}, path)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match="without running code") as caught:
        read_torch_file(path)
    assert "safetensors" in (caught.value.hint or "")
    assert not marker.exists()
    # The same file does run its command where code is allowed: the test is about something.
    script = "import sys, torch; torch.load(sys.argv[1], weights_only=False)"
    subprocess.run([sys.executable, "-c", script, path], check=False, capture_output=True)
    assert marker.exists()


def _truncated(path, size: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(size)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(zipped, share, tmp_path):
    path = tmp_path / "x.bin"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    _truncated(path, int(path.stat().st_size * share))
    with pytest.raises(InputError, match=r"x\.bin"):
        read_torch_file(path)


def test_bytes_changed_anywhere_never_escape_as_another_error(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.arange(8.0), "b": torch.ones(2, 2)}, path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[position] ^= int(random.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            for tensor in read_torch_file(path).values():
                read_all(tensor)
        except InputError:
            refused += 1
    assert 0 < refused < 150  # some bytes are padding or values, which no reader can judge


@pytest.mark.parametrize("value", [[1, 2], 3, torch.ones(2), "text"])
def test_what_is_no_table_is_refused(value, tmp_path):
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(InputError, match="not a table of tensors"):
        read_torch_file(tmp_path / "x.bin")


def test_a_table_with_something_else_in_it_is_refused(tmp_path):
    torch.save({"a": torch.ones(2), "step": 7}, tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"'step'.* is a int, not a tensor"):
        read_torch_file(tmp_path / "x.bin")


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"gone\.bin"):
        read_torch_file(tmp_path / "gone.bin")


def test_a_compressed_archive_is_not_read_as_if_it_were_stored(tmp_path):
    plain, packed = tmp_path / "plain.bin", tmp_path / "packed.bin"
    torch.save({"a": torch.zeros(4096)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info), zipfile.ZIP_DEFLATED)
    try:
        values = read_all(read_torch_file(packed)["a"])
    except InputError:
        return
    np.testing.assert_array_equal(values, np.zeros(4096, np.float32))


def test_without_torch_the_next_step_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingRuntimeError, match="torch is not installed") as caught:
        read_torch_file(tmp_path / "x.bin")
    assert caught.value.exit_code == 7


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3616\n")
    with pytest.raises(InputError, match="pointer of Git LFS") as caught:
        read_torch_file(path)
    assert "git lfs pull" in str(caught.value.hint)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.mkdir(), lambda p: p.symlink_to(p)])
def test_what_is_no_file_is_named_at_once(make, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    make(path)
    with pytest.raises(InputError, match=r"named pipe|folder|links"):
        read_torch_file(path)


def _tables(pickled: bytes, path, *, old: bool) -> None:
    if old:
        start = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        head = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, start)]
        path.write_bytes(b"".join(head) + pickled + pickle.dumps([], 2))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b"\x96" + (1 << 42).to_bytes(8, "little"),  # a byte array
        b"r\xff\xff\xff\xff",  # the memo's last place
        # a key whose hash takes 2**60 steps:
        b"}K\x01" + b"".join(bytes([0x71, i, 0x68, i, 0x86]) for i in range(60)) + b"K\x01s",
    ],
)
def test_a_pickle_that_takes_for_ever_is_refused_at_once(body, old, tmp_path):
    _tables(b"\x80\x04" + body + b".", tmp_path / "x.bin", old=old)
    with pytest.raises(InputError, match="without running code"):
        read_torch_file(tmp_path / "x.bin")
