"""Folders below a path, as messages list them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.folders import folders_below, list_names

if TYPE_CHECKING:
    from pathlib import Path


def test_a_trainers_steps_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("checkpoint-1000", "checkpoint-60", "checkpoint-500", "logs"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "checkpoint-1").write_text("a file")
    found = folders_below(tmp_path, lambda each: each.name.startswith("checkpoint"))
    assert found == ["run/checkpoint-60", "run/checkpoint-500", "run/checkpoint-1000"]
    assert list_names(found).endswith("'run/checkpoint-1000' (the newest)")


def test_many_are_cut_short_but_for_the_last() -> None:
    text = list_names([f"adapter-{index:02}" for index in range(20)])
    assert text.startswith("'adapter-00', ")
    assert text.endswith("… 12 more …, 'adapter-19'")


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert folders_below(tmp_path / "missing", lambda _: True) == []
