"""merge-and-build of adapters that change tied weights: verified against unmerged PEFT."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from lora_export import AdapterSpec, Recipe, add, merge_and_build
from lora_export.commands.recipe import LatencySpec, VerifySpec
from lora_export.core.errors import ParityError
from lora_export.core.manifest import MANIFEST_NAME
from lora_export.runtime import open_export
from tests.cli.running import call
from tests.helpers.tied import FAMILIES, GEMMA3, distance, train

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
        ("bert", {"target_modules": ["decoder"], "bias": "all"}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["predictions"]}),
        ("bart", {"target_modules": ["decoder.embed_tokens"]}),
        ("marian", {"target_modules": ["q_proj"],
                    "trainable_token_indices": {"embed_tokens": [3, 5]}}),
    ],
)  # fmt: skip
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
    assert "does not read" not in result.err


@pytest.mark.slow
def test_vision_language_model_is_untied_in_both_sections(tmp_path: Path, capsys) -> None:
    family = GEMMA3
    family.base().save_pretrained(tmp_path / "base")
    train(family, tmp_path / "base", tmp_path / "a", target_modules=[family.embedding])
    result = call(
        capsys, "merge-and-build", "--base", tmp_path / "base", "--adapter", f"x={tmp_path / 'a'}",
        "--out", tmp_path / "out", "--no-latency", "--task", "text-generation",
    )  # fmt: skip
    assert result.code == 0, result.message
    assert "parity of x: pass" in result.out
    config = json.loads((tmp_path / "out" / "hf" / "config.json").read_text("utf-8"))
    assert config["tie_word_embeddings"] is False
    assert config["text_config"]["tie_word_embeddings"] is False


@pytest.mark.slow
def test_change_to_a_name_that_the_model_never_reads_is_left_out(tmp_path: Path, capsys) -> None:
    family = FAMILIES["t5"]
    base = family.base()
    base.save_pretrained(tmp_path / "base")
    expected = train(family, tmp_path / "base", tmp_path / "a", target_modules=["shared"])
    assert torch.equal(expected, family.logits(base))
    train(family, tmp_path / "base", tmp_path / "b", target_modules=["shared", "q"])
    result = call(
        capsys, "merge-and-build", "--base", tmp_path / "base", "--no-latency", "--out",
        tmp_path / "out", *(f"--adapter={name}={tmp_path / name}" for name in "ab"),
    )  # fmt: skip
    assert result.code == ParityError.exit_code  # `a` has no effect at all
    assert "'shared.weight', which the graph does not read" in result.err
    assert "parity of a: fail" in result.out
    assert "no measurable effect" in result.out
    assert "parity of b: pass" in result.out


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tied base and an export of it that an adapter has untied."""
    folder = tmp_path_factory.mktemp("untied")
    family = FAMILIES["llama"]
    family.base().save_pretrained(folder / "base")
    train(family, folder / "base", folder / "first", target_modules=["embed_tokens"])
    recipe = Recipe(
        base=str(folder / "base"),
        adapters=[AdapterSpec(name="first", source=str(folder / "first"))],
        output=str(folder / "out"),
        cache=False,
        verify=VerifySpec(enabled=False),
        latency=LatencySpec(enabled=False),
    )
    merge_and_build(recipe)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], **ROWS},
        {"target_modules": ["lm_head"], **ROWS},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_adapter_added_to_an_untied_export_changes_what_peft_changes(
    settings, recorded, untied: Path, tmp_path: Path
) -> None:
    family = FAMILIES["llama"]
    expected = train(family, untied / "base", tmp_path / "a", **settings)
    shutil.copytree(untied / "out", tmp_path / "out")
    if not recorded:  # as earlier versions wrote it
        manifest = tmp_path / "out" / MANIFEST_NAME
        table = json.loads(manifest.read_text("utf-8"))
        assert table["base"].pop("ties")
        manifest.write_text(json.dumps(table), "utf-8")
    ids = np.arange(3, 17)[None]
    positions = np.arange(ids.shape[1])[None]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
    add(tmp_path / "out", [AdapterSpec(name="added", source=str(tmp_path / "a"))])
    with open_export(tmp_path / "out", adapters={"loaded": tmp_path / "a"}) as session:
        for name in ("added", "loaded"):
            logits = session.run(feeds, adapter=name)["logits"]
            assert distance(torch.from_numpy(logits), expected) < 1e-5, name
