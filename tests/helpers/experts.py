"""Tiny models whose experts are stacked, and PEFT adapters of their bare parameters."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

from tests.helpers.builds import model_values

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EXPERT_MODELS", "expert_adapter", "expert_base", "load_expert_model"]

_COMMON: Final = {
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 32,
}
EXPERT_MODELS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 3}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {"moe_intermediate_size": 12, "num_experts": 5, "num_experts_per_tok": 2, "head_dim": 8},
    ),
    "gpt-oss": (
        "GptOssConfig",
        {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8},
    ),
    "gpt-oss-square": (
        "GptOssConfig",
        {
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "intermediate_size": 16,
        },
    ),
}
"""Each model: its config's class, and what differs. The square one is GPT-OSS's own proportion."""


def expert_base(kind: str, folder: Path, *, seed: int = 0, **saving: Any) -> Path:
    """Save a random checkpoint of `kind`; `saving` goes to ``save_pretrained``."""
    import torch
    import transformers

    name, settings = EXPERT_MODELS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, name)(**{**_COMMON, **settings})
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        model.save_pretrained(folder, **saving)
    return folder


def load_expert_model(folder: Path, dtype: str | None = None) -> Any:
    """Load a checkpoint."""
    import torch
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype) if dtype else "auto"
        )
    return model.eval()


def expert_adapter(
    base: Path, folder: Path, *, parameters: list[str], seed: int = 1, **settings: Any
) -> dict[str, Any]:
    """Save an adapter with random factors; return what PEFT makes of it, and its logits before.

    Returns:
        The state after ``merge_and_unload`` in float64, and under ``""`` the unmerged logits of
        ``[[3, 4, …, 14]]`` in float32.
    """
    import peft
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(
            **{
                "task_type": "CAUSAL_LM",
                "r": 2,
                "lora_alpha": 3,
                "target_modules": [],
                "target_parameters": parameters,
                **settings,
            }
        )
        model = peft.get_peft_model(load_expert_model(base, "float32"), config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad or "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            logits = model(torch.arange(3, 15)[None]).logits
        model.save_pretrained(str(folder))
        merged = model_values(model.double().merge_and_unload())
    return {"": logits, **merged}
