"""merge-and-build of adapters that change tied weights: verified against unmerged PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.running import call
from tests.helpers.tied import FAMILIES, train

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {"trainable_token_indices": [3, 5]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"target_modules": ["lm_head"], **ROWS}),
        ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3]}}),
        ("t5", {"target_modules": ["q"], "modules_to_save": ["lm_head"]}),
        ("t5", {"target_modules": ["lm_head"], **ROWS}),
        ("bert", {"target_modules": ["word_embeddings"]}),
        ("bart", {"target_modules": ["decoder.embed_tokens"]}),
    ],
)
def test_export_is_untied_and_verified(name, settings, tmp_path: Path, capsys) -> None:
    family = FAMILIES[name]
    family.base().save_pretrained(tmp_path / "base")
    train(family, tmp_path / "base", tmp_path / "a", **settings)
    result = call(
        capsys, "merge-and-build", "--base", tmp_path / "base", "--adapter", f"x={tmp_path / 'a'}",
        "--out", tmp_path / "out", "--no-latency",
    )  # fmt: skip
    assert result.code == 0, result.message
    assert "parity of x: pass" in result.out
