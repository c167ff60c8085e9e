"""docs/checkpoints.md says what the code does: its table of formats is the code's."""

from __future__ import annotations

from pathlib import Path

from lora_export.weights.gguf.architectures import ARCHITECTURES
from lora_export.weights.quantized.formats import FORMATS

PAGE = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text("utf-8")


def test_the_formats_are_those_that_are_read() -> None:
    table = PAGE.split("## Formats", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [(row[0].strip(), row[1].strip()) for row in rows[1:]] == [
        (row.title, row.suffixes) for row in FORMATS
    ]
    assert all(row[2].strip() for row in rows[1:])


def test_the_architectures_of_gguf_are_those_that_are_read() -> None:
    table = PAGE.split("## GGUF", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")][1:]
    rows = [line.strip("|").split(" | ") for line in lines]
    assert {row[0].strip(" `"): row[1].split("`")[1] for row in rows} == {
        name: row.model_types[0] for name, row in ARCHITECTURES.items()
    }
