"""docs/adapters.md says what the code does: its tables are compared with the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_export.adapters.formats import peft
from lora_export.adapters.formats.detect import FORMATS
from lora_export.adapters.methods.table import METHODS, NOT_MERGED
from tests.adapters.test_variants import VARIANTS

PAGE = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text("utf-8")


def section(title: str) -> list[list[str]]:
    """Return the cells of the table under a heading, its header first."""
    text = PAGE.split(f"## {title}", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if "---" not in row[0]]


def test_formats_are_those_that_are_read() -> None:
    assert [row[0].strip("`") for row in section("Formats")[1:]] == sorted(
        FORMATS, key=["peft", "loralib", "kohya", "mlx", "gguf", "torchtune"].index
    )
    assert section("Variants")[0][1:] == [row[0].strip("`") for row in section("Formats")[1:]]


def test_refused_settings_are_those_of_the_reader() -> None:
    named = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in section("Refused, by name")[1:])))
    beside = {"peft_type", "LORA", "init_lora_weights", *peft._CHANGES_BASE}
    assert named == set(peft._REFUSED_SETTINGS) | beside


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("rslora", "rsLoRA"),
        ("patterns", "rank_pattern"),
        ("dora", "DoRA"),
        ("lora-bias", "lora_bias"),
        ("bias-only", "trained biases"),
        ("tokens", "trainable_token_indices"),
        ("saved", "modules_to_save"),
    ],
)
def test_variant_that_is_tested_is_said_to_be_handled(variant: str, words: str) -> None:
    assert variant in VARIANTS
    (row,) = [row for row in section("Variants")[1:] if words in row[0]]
    assert re.match(r"merged|replaced|rows replaced", row[1])


def kinds(title: str) -> set[str]:
    """Return the ``peft_type`` of each row under a heading of the third level."""
    text = PAGE.split(f"### {title}", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return set(re.findall(r"`([A-Z0-9_]+)`", " ".join(rows)))


def test_every_method_of_peft_is_in_one_of_the_tables() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    here = {kind for kind, method in METHODS.items() if not method.by_peft}
    assert kinds("Merged without torch") == here
    assert kinds("Merged by PEFT") == set(METHODS) - here
    assert kinds("Not merged") == set(NOT_MERGED)
    registered = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert registered == {"LORA", *METHODS, *NOT_MERGED}
    assert not set(METHODS) & set(NOT_MERGED)
