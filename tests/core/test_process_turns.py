"""Turns among processes: beside each other, or alone; nobody is put off for ever."""

from __future__ import annotations

import multiprocessing
import time
from typing import TYPE_CHECKING

import pytest

from lora_export.core.process_turns import Turns

if TYPE_CHECKING:
    from pathlib import Path


def take(folder: Path, alone: bool, times: int, hold_s: float, spans) -> None:
    turns = Turns(folder)
    for _ in range(times):
        with turns.take(alone=alone):
            begin = time.monotonic()
            time.sleep(hold_s)
            spans.append((alone, begin, time.monotonic()))
    turns.close()


def spans_of(folder: Path, *plans: tuple[bool, int, float]):
    """Run each plan in a process of its own; return who held a turn when."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        spans = manager.list()
        processes = [context.Process(target=take, args=(folder, *plan, spans)) for plan in plans]
        for each in processes:
            each.start()
        for each in processes:
            each.join(60)
            assert each.exitcode == 0
        return sorted(spans, key=lambda span: span[1])


def overlap(one, other) -> bool:
    return one[1] < other[2] and other[1] < one[2]


def test_who_is_alone_is_beside_nobody_and_gets_its_turn(tmp_path):
    found = spans_of(tmp_path / "turns", (False, 12, 0.05), (False, 12, 0.05), (True, 2, 0.1))
    assert len(found) == 26
    alone = [span for span in found if span[0]]
    assert not any(overlap(a, b) for a in alone for b in found if a is not b)
    beside = [span for span in found if not span[0]]
    assert any(overlap(a, b) for a in beside for b in beside if a is not b)
    assert not (tmp_path / "turns").exists()


def test_a_turn_ends_with_an_exception_and_with_its_process(tmp_path):
    turns, other = Turns(tmp_path), Turns(tmp_path)
    for alone in (True, False):
        with pytest.raises(ZeroDivisionError), turns.take(alone=alone):
            assert 1 / 0
        with other.take(alone=True):
            pass
    context = multiprocessing.get_context("spawn")
    event = context.Event()
    process = context.Process(target=hold, args=(tmp_path, event))
    process.start()
    assert event.wait(30)
    process.kill()
    process.join()
    with turns.take(alone=True):
        pass
    turns.close()
    other.close()


def hold(folder: Path, event) -> None:
    with Turns(folder).take(alone=True):
        event.set()
        time.sleep(60)
