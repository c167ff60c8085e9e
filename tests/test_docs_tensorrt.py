"""docs/tensorrt.md says what the code does: its table is written from the code."""

from __future__ import annotations

import re

import pytest

from lora_export.core.targets import TARGETS
from tests.cli.running import call
from tools.targets import PAGE, replaced, table

TEXT = PAGE.read_text("utf-8")


def test_the_table_of_targets_is_that_of_the_code():
    assert replaced(TEXT) == TEXT
    assert table() in TEXT


def test_every_target_with_tensorrt_has_a_row():
    rows = re.findall(r"^\| `([\w-]+)` \| (?:[\d.]+|the device's) \|", TEXT, re.MULTILINE)
    assert rows == [row.name for row in TARGETS.values() if row.tensorrt]


@pytest.mark.parametrize("flag", ["--target", "--tensorrt", "--memory", "--profile", "--strict"])
def test_the_flags_that_it_names_are_those_of_the_command(flag, capsys):
    assert flag in TEXT
    assert flag in call(capsys, "preflight", "--help").out
