"""Golden files: what is written is read, whatever is damaged is refused."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from lora_export.core.errors import ExportDirectoryError
from lora_export.ondevice.judge.golden_files import Case, Golden, read_golden
from lora_export.verification.golden import golden_file
from lora_export.verification.inputs.random_inputs import make_cases
from tests.helpers.golden import write_golden
from tests.helpers.interfaces import reading


def golden(effect: float | None = 0.25) -> Golden:
    cases = make_cases(
        {"vocab_size": 50}, reading("input_ids", "attention_mask"), seed=0, left_padding=False,
        shapes=((1, 4), (3, 6)),
    )  # fmt: skip
    random = np.random.default_rng(0)
    expected = [random.standard_normal((len(case.mask), 3)).astype(np.float32) for case in cases]
    return Golden(cases, expected, effect)


@pytest.mark.parametrize("effect", [None, 0.0, 0.25, 1e-12])
def test_what_is_written_is_read(effect, tmp_path):
    written = golden(effect)
    write_golden(tmp_path, "a-b_1", written)
    path = tmp_path / golden_file("a-b_1")
    assert path == tmp_path / "golden" / "a-b_1.npz"
    read = read_golden(path)
    assert read.effect == effect
    assert len(read.cases) == len(read.expected) == 2
    for one, other in zip(read.cases, written.cases, strict=True):
        assert list(one.feeds) == list(other.feeds)
        for name, values in other.feeds.items():
            np.testing.assert_array_equal(one.feeds[name], values)
            assert one.feeds[name].dtype == np.int64
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.mask.dtype == np.bool_
    for found, wanted in zip(read.expected, written.expected, strict=True):
        assert found.tobytes() == wanted.tobytes()
        assert found.dtype == np.float32


def test_length_where_frequencies_change_is_read_where_it_is_written(tmp_path):
    write_golden(tmp_path, "long", replace(golden(), switch=32))
    write_golden(tmp_path, "short", golden())
    assert read_golden(tmp_path / golden_file("long")).switch == 32
    assert read_golden(tmp_path / golden_file("short")).switch is None
    with np.load(tmp_path / golden_file("short")) as arrays:
        assert "switch" not in arrays  # as earlier versions wrote it


def test_more_than_ten_cases_keep_their_order(tmp_path):
    cases = [Case({"x": np.full((1, 1), i)}, np.ones((1, 1), bool)) for i in range(12)]
    expected = [np.full((1, 1), i, np.float32) for i in range(12)]
    write_golden(tmp_path, "x", Golden(cases, expected, None))
    read = read_golden(tmp_path / golden_file("x"))
    assert [int(case.feeds["x"][0, 0]) for case in read.cases] == list(range(12))
    assert [int(values[0, 0]) for values in read.expected] == list(range(12))


def test_the_same_outputs_are_the_same_bytes(tmp_path):
    digests = {write_golden(tmp_path, name, golden()) for name in ("x", "y")}
    assert len(digests) == 1


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ExportDirectoryError, match="missing or damaged") as caught:
        read_golden(tmp_path / "gone.npz")
    assert "--base" in (caught.value.hint or "")


@pytest.fixture
def path(tmp_path):
    write_golden(tmp_path, "x", golden())
    return tmp_path / golden_file("x")


def test_every_truncation_is_refused(path):
    whole = path.read_bytes()
    for size in range(0, len(whole), 23):
        path.write_bytes(whole[:size])
        with pytest.raises(ExportDirectoryError):
            read_golden(path)


def test_damage_anywhere_is_refused_or_harmless(path):
    whole = path.read_bytes()
    expected = read_golden(path)
    for position in range(0, len(whole), 5):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(bytes(damaged))
            try:
                found = read_golden(path)
            except ExportDirectoryError:
                continue
            # Time stamps and the like: the checksums of the archive guard the values.
            for one, other in zip(found.expected, expected.expected, strict=True):
                assert one.tobytes() == other.tobytes()


def test_a_pickle_in_it_is_never_unpickled(tmp_path):
    marker = tmp_path / "ran"

    class Command:
        def __reduce__(self):
            return exec, (f"open({str(marker)!r}, 'w').close()",)

    path = tmp_path / "x.npz"
    np.savez(path, effect=np.array([Command()], dtype=object))
    with pytest.raises(ExportDirectoryError, match="damaged"):
        read_golden(path)
    path.write_bytes(pickle.dumps(Command(), protocol=2))
    with pytest.raises(ExportDirectoryError, match="damaged"):
        read_golden(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"effect": np.array(1.0), "0.mask": np.ones((1, 1), bool)},
        {"effect": np.array(1.0), "0.expected": np.ones((1, 1))},
        {"0.mask": np.ones((1, 1), bool), "0.expected": np.ones((1, 1))},
        {"effect": np.array([1.0, 2.0])},
        {"effect": np.array("much")},
        {"effect": np.array(1.0), "7.mask": np.ones(1), "7.expected": np.ones(1)},
    ],
)
def test_an_archive_of_something_else_is_refused(arrays, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ExportDirectoryError, match="damaged"):
        read_golden(tmp_path / "x.npz")


def test_one_array_is_no_archive(tmp_path):
    with (tmp_path / "x.npz").open("wb") as stream:
        np.save(stream, np.ones(3))
    with pytest.raises(ExportDirectoryError, match="damaged"):
        read_golden(tmp_path / "x.npz")


def test_an_array_that_announces_more_than_it_has_is_refused(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("effect.npy", raw)
    with pytest.raises(ExportDirectoryError, match="damaged"):
        read_golden(tmp_path / "x.npz")
