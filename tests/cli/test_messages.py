"""The catalogue of messages: one of every class, each as the golden text has it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lora_export.core import errors
from tests.cli.golden_messages import CASES, GOLDEN, Case, prepare, text_of

if TYPE_CHECKING:
    from pathlib import Path

RIDDLES = ("what lacks", "is told", "by itself", "so many", "whose which")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("messages")
    prepare(tiny, made)
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_the_message_is_that_of_the_golden_text(case: Case, folder: Path) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert text_of(case, folder) in GOLDEN.read_text("utf-8"), "python -m tests.cli.golden_messages"


def test_every_class_of_errors_has_a_message() -> None:
    classes = {name for name in errors.__all__ if name != "InputError"}  # its subclasses are used
    assert {case.kind for case in CASES} == classes


def test_each_message_has_a_hint_and_no_riddle() -> None:
    text = GOLDEN.read_text("utf-8")
    assert text.count("\nerror: ") >= len(CASES) - 1
    assert not [riddle for riddle in RIDDLES if riddle in text]
