"""Quantized exports of every kind of adapter are exact, and what they are measured against fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lora_export.commands.quantize import quantize
from lora_export.commands.recipe_sections import QuantizeSpec
from lora_export.commands.verify import verify
from tests.helpers.builds import build
from tests.helpers.sentences import save_sentences
from tests.helpers.slow import nightly
from tests.helpers.vocabulary import FAMILIES, TOKENS, save_base, save_grown

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

pytestmark = pytest.mark.slow

CLASSES, TEXT, FEATURES = "text-classification", "text-generation", "feature-extraction"
NO_HEAD = {"labels_count": None}
KINDS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "a saved head": ("llama", TEXT, "merged", {"modules_to_save": ["lm_head"], **NO_HEAD}),
    "LoRA on a tied embedding": (
        "llama-tied", TEXT, "merged", {"target_modules": ["q_proj", "embed_tokens"], **NO_HEAD},
    ),
    "trained rows": (
        "llama", TEXT, "merged",
        {"trainable_token_indices": {"embed_tokens": [3, 5, 7]}, **NO_HEAD},
    ),
    "a weight with two readers": ("deberta-v2", CLASSES, "swappable", {}),
    "DoRA": ("roberta", CLASSES, "merged", {"use_dora": True}),
    "biases": ("roberta", CLASSES, "merged", {"bias": "lora_only"}),
    "every layer in rows": (
        "gpt2", TEXT, "batched", {"target_modules": ["c_attn", "c_proj", "c_fc"], **NO_HEAD},
    ),
}  # fmt: skip


def require_survival(outcome: Any, least: float) -> None:
    """Require that each graph is exact, and that its adapter has the effect that it has in PEFT."""
    assert outcome.exit_code() == 0
    for graph, row in outcome.reports.quantization.graphs.items():
        for name, own in {graph: row, **row.adapters}.items():
            if own.loss is None:
                continue
            assert own.exactness.verdict == "pass", name
            assert own.exactness.weights.verdict == "pass", name
            if own.loss.exact_gain is not None:
                assert own.loss.exact_cosine > least, name
                assert own.loss.exact_gain == pytest.approx(1, abs=0.15), name


@pytest.mark.parametrize("kind", nightly(KINDS, but=2))
def test_an_adapter_of_each_kind(tiny: TinyModels, tmp_path: Path, kind: str) -> None:
    model, task, mode, settings = KINDS[kind]
    base = tiny.base(model, task)
    outcome = build(
        base, {"one": tiny.adapter(base, task=task, **settings)}, tmp_path / "out", task=task,
        mode=mode, quantize="int8", verify={"enabled": True},
    )  # fmt: skip
    require_survival(outcome, 0.95)


@pytest.mark.parametrize("way", nightly(["rows", "LoRA on both", "saved because resized"], but=1))
def test_a_grown_vocabulary(tmp_path: Path, way: str) -> None:
    family = FAMILIES["llama-tied"]
    base = save_base(family, tmp_path / "base")
    save_grown(family, base, tmp_path / "adapter", way, TOKENS + 5)
    outcome = build(
        base, {"one": tmp_path / "adapter"}, tmp_path / "out", task=TEXT, quantize="int8",
        verify={"enabled": True},
    )  # fmt: skip
    require_survival(outcome, 0.95)


@pytest.mark.parametrize("mode", ["merged", "swappable"])
def test_a_dense_layer_behind_the_model(tiny: TinyModels, tmp_path: Path, mode: str) -> None:
    bare = tiny.base("bert", FEATURES)
    base = save_sentences(bare, tmp_path / "base", "mean_tokens", dense=64)
    outcome = build(
        base, {"one": tiny.adapter(bare, task=FEATURES, **NO_HEAD)}, tmp_path / "out", mode=mode,
        quantize="int8", verify={"enabled": True},
    )  # fmt: skip
    require_survival(outcome, 0.95)
    assert "2_Dense.linear.weight" in outcome.reports.quantization.graphs["base"].layers


@pytest.mark.parametrize("mode", ["merged", "swappable"])
def test_a_float16_export_that_is_quantized_later(
    tiny: TinyModels, tmp_path: Path, mode: str
) -> None:
    """Its weights were rounded to float16 first; exactly those are quantized."""
    base = tiny.base("roberta", CLASSES)
    build(base, {"one": tiny.adapter(base)}, tmp_path / "float", mode=mode, dtype="float16")
    quantize(tmp_path / "float", tmp_path / "out", QuantizeSpec(weights="int8"))
    require_survival(verify(tmp_path / "out", base=base), 0.95)
