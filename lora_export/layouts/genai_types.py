"""The model types of onnxruntime-genai, by those of transformers."""

from __future__ import annotations

from typing import Final

from lora_export.core.errors import UnsupportedError

__all__ = ["GENAI_TYPES", "GENAI_VERSION", "genai_type"]

GENAI_VERSION: Final = "0.18"
"""The version of onnxruntime-genai that the table was tried with."""

_ANY: Final = "decoder"
"""The type of any decoder whose only state are keys and values."""

_OWN: Final = (
    "ernie4_5",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "nemotron",
    "olmo",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen3",
    "smollm3",
)
"""Types that it calls as transformers does."""

_OTHERS: Final = (
    "apertus",
    "arcee",
    "biogpt",
    "bloom",
    "codegen",
    "cohere",
    "cohere2",
    "falcon",
    "glm",
    "glm4",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gpt_neox_japanese",
    "gptj",
    "granitemoe",
    "helium",
    "mixtral",
    "mpt",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "persimmon",
    "qwen2_moe",
    "qwen3_moe",
    "seed_oss",
    "stablelm",
    "starcoder2",
    "xglm",
)
"""Types without a name of their own there that were tried as `_ANY`; that of GPT-2 there is for
keys and values in one tensor."""

GENAI_TYPES: Final = {
    **{each: each for each in _OWN},
    **dict.fromkeys(_OTHERS, _ANY),
    "gpt_oss": "gptoss",
    "hunyuan_v1_dense": "hunyuandensev1",
}
"""Decoders whose only state are keys and values: what ``model.type`` is for each."""


def genai_type(model_type: str) -> str:
    """Return what onnxruntime-genai calls a model type.

    Raises:
        UnsupportedError: It does not know it.
    """
    found = GENAI_TYPES.get(model_type)
    if found is None:
        msg = f"onnxruntime-genai {GENAI_VERSION} does not know the model type {model_type!r}"
        hint = f"Supported: {', '.join(sorted(GENAI_TYPES))}. Run it with: lora-export generate"
        raise UnsupportedError(msg, hint=hint)
    return found
