"""A base with two adapters, built once: what the tests here look at."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from lora_export.verification.inputs.random_inputs import make_cases
from tests.helpers.interfaces import reading

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.exports import (
        Array,
    )
    from tests.cli.running import Result


TASK = "text-classification"
ADAPTERS = ("first", "second")


class Built(NamedTuple):
    base: Path
    adapters: dict[str, Path]
    out: Path
    result: Result


def cases_of(built: Built) -> tuple[list[dict[str, Array]], list[Array]]:
    """Return the inputs of the verification, seed 0."""
    config = json.loads((built.base / "config.json").read_text())
    signature = reading("input_ids", "attention_mask", "token_type_ids")
    cases = make_cases(config, signature, seed=0, left_padding=False)
    assert len({case.mask.shape for case in cases}) >= 4
    assert any(not case.mask.all() for case in cases)
    return [dict(case.feeds) for case in cases], [case.mask for case in cases]


def write_recipe(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"
