"""Some inputs for every reader, and that the fuzz notices what it is for."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.core.errors import InputError
from tools.reader_fuzz import run
from tools.reader_fuzz.reader import Reader, Target
from tools.reader_fuzz.run import draw_input, read_saved, run_here, run_watched
from tools.reader_fuzz.table import READERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEED = int(os.environ.get("LORA_EXPORT_FUZZ_SEED", "1"))
FAST, SLOW = 400, 8_000


@pytest.mark.parametrize("name", sorted(READERS))
def test_no_damaged_file_gets_past_the_errors_of_the_project(name: str) -> None:
    outcome = run_here(name, range(FAST // READERS[name].slowness), SEED)
    assert not outcome.found, [each.detail for each in outcome.examples.values()]
    assert outcome.refused


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(READERS))
def test_no_damaged_file_takes_long_or_much(name: str, tmp_path: Path) -> None:
    count = SLOW // READERS[name].slowness
    outcome = run_watched(name, range(FAST, FAST + count), SEED, tmp_path)
    assert not outcome.found, [each.detail for each in outcome.examples.values()]
    assert outcome.read
    assert outcome.refused


def _refuse(data: bytes) -> None:
    if data != b"good":
        raise InputError("bad")


def _fail(data: bytes) -> None:
    if data != b"good":
        raise KeyError(data)


def _hide_memory(data: bytes) -> None:
    if data != b"good":
        raise InputError("bad") from MemoryError()


def _reader(read: Callable[[bytes], None]) -> Reader:
    target = Target(
        ({"x": b"good"},), {"x": (lambda chance, _: chance.randbytes(4),)},
        lambda folder: read((folder / "x").read_bytes()),
    )  # fmt: skip
    return Reader(lambda _: target)


@pytest.mark.parametrize(
    ("read", "found"), [(_refuse, ""), (_fail, "KeyError"), (_hide_memory, "memory")]
)
def test_an_error_of_another_class_is_found_and_its_input_kept(
    read: Callable[[bytes], None], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "READERS", {"one": _reader(read)})
    outcome = run_here("one", range(5), SEED, tmp_path)
    assert [kind.partition(":")[0] for kind in outcome.found] == ([found] if found else [])
    assert sum(outcome.found.values()) == (5 if found else 0)
    if found:
        with pytest.raises((KeyError, InputError)):
            read_saved("one", tmp_path / f"one-{SEED}-0")


def test_an_input_is_drawn_again_by_seed_and_index(tmp_path: Path) -> None:
    target = READERS["safetensors"].prepare(tmp_path)
    inputs = [draw_input(target, "safetensors", 1, index) for index in range(20)]
    assert inputs == [draw_input(target, "safetensors", 1, index) for index in range(20)]
    assert len({each["x.safetensors"] for each in inputs}) > 15


class _Counts(list[int]):
    """The shared state of a process, in this one."""


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda data: _spin() if data != b"good" else None, "TooSlowError"),
        (lambda data: bytes(1 << 40) if data != b"good" else None, "MemoryError"),
    ],
)
def test_a_loop_and_an_allocation_are_found(
    read: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "READERS", {"one": _reader(read)})
    monkeypatch.setattr(run, "SECONDS", 0.05)
    monkeypatch.setattr(run, "_limit_memory", lambda: None)
    sent: list[Any] = []
    counts = _Counts([0, 0, 0, 0])
    run._child(
        ("one", range(2), SEED, tmp_path, False), counts, type("", (), {"send": sent.append})
    )  # type: ignore[arg-type]
    assert {each.kind.partition(":")[0] for each in sent} == {kind}


def _spin() -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        pass
