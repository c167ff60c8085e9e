"""merge of token rows that several names of one tied weight have, each with values of its own."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.core.errors import AdapterError
from tests.helpers.tied import FAMILIES, distance, merge, train

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 2e-6


@pytest.mark.parametrize(
    ("name", "rows", "head", "ensured"),
    [
        ("marian", {"embed_tokens": [3, 5]}, "model.encoder.embed_tokens", True),
        ("marian", {"embed_tokens": [3, 5]}, "model.encoder.embed_tokens", False),
        (
            "marian",
            {"shared": [4], "encoder.embed_tokens": [3, 5]},
            "model.encoder.embed_tokens",
            False,
        ),
        ("marian", {"embed_tokens": [3, 5], "encoder.embed_tokens": [3]}, None, False),
        ("marian", {"encoder.embed_tokens": [3, 5], "decoder.embed_tokens": [5, 3]}, None, False),
        ("bart", {"shared": [3, 5], "encoder.embed_tokens": [3, 5]}, "model.shared", True),
        ("bart", {"shared": [3, 5], "encoder.embed_tokens": [3, 4]}, None, False),
        ("bart", {"embed_tokens": [3, 5]}, None, False),
        ("t5", {"shared": [3, 5], "embed_tokens": [3, 5]}, "shared", False),
        ("llama", {"embed_tokens": [3, 5], "lm_head": [5, 3]}, "lm_head", False),
    ],
)
def test_head_has_the_rows_that_unmerged_peft_gives_it(
    name: str, rows: dict[str, list[int]], head: str | None, ensured: bool, tmp_path: Path
) -> None:
    """PEFT ties names without rows to the input embedding, unless the config lists other rows."""
    family = FAMILIES[name]
    base = tmp_path / "base"
    family.base().save_pretrained(base)
    settings = {"target_modules": [family.inner], "ensure_weight_tying": ensured}
    expected = train(family, base, tmp_path / "a", trainable_token_indices=rows, **settings)
    wanted = family.load(base).get_output_embeddings().weight.detach().clone()
    if head is not None:
        trained = load_file(tmp_path / "a" / "adapter_model.safetensors")
        key = f"base_model.model.{head}.token_adapter.trainable_tokens_delta"
        wanted[list(rows.values())[-1]] = trained[key]
    for stored in ("own", "bare"):
        if stored == "bare":
            tensors = load_file(base / "model.safetensors")
            bare = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
            save_file(bare, base / "model.safetensors", {"format": "pt"})
        merge(base, tmp_path / "a", tmp_path / stored)
        merged = family.load(tmp_path / stored)
        assert distance(family.logits(merged), expected) < LIMIT
        assert torch.equal(merged.get_output_embeddings().weight, wanted)


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_rows_that_peft_saves_again_with_a_tied_module_are_one(name: str, tmp_path: Path) -> None:
    """TRAINABLE_TOKENS names the embedding in its config, and saves the tied output's rows too."""
    from peft import TrainableTokensConfig, get_peft_model

    family = FAMILIES[name]
    base = tmp_path / "base"
    family.base().save_pretrained(base)
    target = "shared" if name == "bart" else "embed_tokens"
    config = TrainableTokensConfig(target_modules=[target], token_indices=[5, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ties, which PEFT has undone by then
        model = get_peft_model(family.load(base), config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "trainable_tokens_delta" in key:
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(tmp_path / "a")
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert len(stored) > 1
    expected = family.logits(model)
    merge(base, tmp_path / "a", tmp_path / "out")
    assert distance(family.logits(family.load(tmp_path / "out")), expected) < LIMIT

    other = next(each for each in stored if target not in each)
    save_file({**stored, other: stored[other] + 1}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="does not target"):  # rows of its own: nobody's copy
        merge(base, tmp_path / "a", tmp_path / "other")
