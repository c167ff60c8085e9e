"""Parts of adapters beside A and B, over quantized weights: heads, tokens, DoRA, vocabularies."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.core.errors import UnsupportedError
from tests.helpers.builds import build
from tests.helpers.models import TARGETS, load_tiny
from tests.helpers.slow import but_the_first, nightly

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

TEXT = "text-generation"
HEAD: dict[str, Any] = {"modules_to_save": ["lm_head"]}
TOKENS: dict[str, Any] = {"trainable_token_indices": [1, 5, 9]}
DORA: dict[str, Any] = {"use_dora": True}
CASES = (
    ("llama-tied", "merged", TOKENS),
    ("llama", "swappable", HEAD),
    ("llama-tied", "merged", HEAD),
    ("gpt2", "swappable", DORA),
    ("llama", "batched", DORA),
    ("llama", "merged", HEAD),
    ("llama", "batched", HEAD),
    ("gpt2", "merged", TOKENS),
    ("gpt2", "merged", DORA),
)


def verified(base: Path, adapter: Path, export_dir: Path, mode: str, scheme: str) -> int:
    """Return the exit code of a build with its verification."""
    outcome = build(
        base, {"one": adapter}, export_dir, task=TEXT, mode=mode, quantize=scheme,
        verify={"enabled": True},
    )  # fmt: skip
    return outcome.exit_code()


@pytest.mark.parametrize(("kind", "mode", "settings"), but_the_first(CASES, slow=4))
def test_what_an_adapter_brings_is_exact_over_quantized_weights(
    tiny: TinyModels, tmp_path: Path, kind: str, mode: str, settings: dict[str, Any]
) -> None:
    base = tiny.base(kind, TEXT)
    adapter = tiny.adapter(base, task=TEXT, labels_count=None, **settings)
    assert verified(base, adapter, tmp_path / "out", mode, "int4") == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("kind", nightly(["llama-tied", "gpt2", "llama"], but=1))
def test_a_vocabulary_of_an_adapters_own(
    tiny: TinyModels, tmp_path: Path, kind: str, scheme: str
) -> None:
    import peft

    base = tiny.base(kind, TEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_tiny(base, TEXT, dtype="float32")
        model.resize_token_embeddings(207)
        targets = list(TARGETS[model.config.model_type])
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
        config.init_lora_weights = False
        wrapped = peft.get_peft_model(model, config)
        wrapped.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    assert verified(base, tmp_path / "adapter", tmp_path / "out", "merged", scheme) == 0
    with pytest.raises(UnsupportedError):
        verified(base, tmp_path / "adapter", tmp_path / "shared", "swappable", scheme)
