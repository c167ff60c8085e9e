"""``merge`` with a vocabulary that training changed; PEFT on a resized base is the oracle."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.running import call
from tests.helpers.tied import FAMILIES as TIED
from tests.helpers.tied import train
from tests.helpers.vocabulary import (
    FAMILIES,
    TOKENS,
    WAYS,
    Family,
    logits_of,
    resized_peft,
    save_base,
    save_grown,
)

if TYPE_CHECKING:
    from pathlib import Path


NOT_AS_TRAINED = {
    ("marian", "LoRA on both"),  # transformers leaves the head's out_features as they were
    ("marian", "rows"),  # PEFT sees the tie of a resized model no more
    ("bert", "rows"),  # PEFT's layer of token rows runs a head without its bias
    ("roberta", "rows"),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """A base of each family."""
    root = tmp_path_factory.mktemp("bases")
    return {name: save_base(family, root / name) for name, family in FAMILIES.items()}


def load(family: Family, folder: Path) -> Any:
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = getattr(transformers, family.model).from_pretrained(
            folder, output_loading_info=True
        )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def relative(ours: Any, theirs: Any) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def merge(capsys, base: Path, adapter: Path, out: Path, *more: str) -> Any:
    return call(capsys, "merge", "--base", base, "--adapter", f"x={adapter}", "--out", out, *more)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "plain"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_grown_vocabulary_is_merged_as_peft_runs_it(kind, way, bases, tmp_path, capsys) -> None:
    family, base, size = FAMILIES[kind], bases[kind], TOKENS + 5
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    model = save_grown(family, base, adapter, way, size)
    result = merge(capsys, base, adapter, out)
    if (kind, way) in NOT_AS_TRAINED:
        assert result.code in {3, 4}
        return
    trained = logits_of(model, size)
    if relative(logits_of(resized_peft(family, base, adapter, size), size), trained) > 1e-6:
        assert result.code == 3, result.out  # PEFT saved the embedding and not the head
        return
    assert result.code == 0, result.err
    merged = load(family, out)
    assert merged.get_input_embeddings().weight.shape[0] == size
    assert merged.config.get_text_config().vocab_size == size
    assert relative(logits_of(merged, size), trained) < 1e-5


def test_the_head_of_the_base_keeps_its_rows_under_a_classifier(bases, tmp_path, capsys) -> None:
    """A classifier has no output embeddings, so that its adapter brings none."""
    import peft
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaForSequenceClassification

    base, adapter, out, size = bases["llama"], tmp_path / "adapter", tmp_path / "out", TOKENS + 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlamaForSequenceClassification.from_pretrained(base, num_labels=3)
        model.resize_token_embeddings(size)
        config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
        trained = peft.get_peft_model(model, config).eval()
        with torch.no_grad():
            for parameter in trained.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        trained.save_pretrained(adapter, save_embedding_layers=True)
        result = merge(capsys, base, adapter, out)
        assert result.code == 0, result.err
        merged = LlamaForSequenceClassification.from_pretrained(out).eval()
        ids = torch.arange(3, size)[None, -40:]
        with torch.no_grad():
            assert relative(merged(ids).logits, trained(ids).logits) < 1e-5
    stored = load_file(out / "model.safetensors")
    assert stored["model.embed_tokens.weight"].shape[0] == size
    assert torch.equal(
        stored["lm_head.weight"], load_file(base / "model.safetensors")["lm_head.weight"]
    )


@pytest.mark.parametrize("saved_by", ["opt", "llama"])
def test_a_longer_head_without_the_embeddings_is_refused(saved_by, tmp_path, capsys) -> None:
    """The base lacks a head, so that nothing but its token embeddings tells the vocabulary."""
    import torch
    from safetensors.torch import load_file, save_file

    family, base, adapter = TIED[saved_by], tmp_path / "base", tmp_path / "adapter"
    family.base().save_pretrained(base)
    config = json.loads((base / "config.json").read_text("utf-8"))
    text = json.dumps({**config, "tie_word_embeddings": False})
    (base / "config.json").write_text(text, "utf-8")
    train(family, base, adapter, target_modules=["q_proj"], modules_to_save=["lm_head"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    head = tensors["base_model.model.lm_head.weight"]
    tensors["base_model.model.lm_head.weight"] = torch.cat([head, head[:5]])
    save_file(tensors, file, {"format": "pt"})
    result = merge(capsys, base, adapter, tmp_path / "out")
    assert result.code == 3
    assert "embed_tokens.weight" in result.err
