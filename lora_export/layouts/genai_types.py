"""The model types of onnxruntime-genai, by those of transformers."""

from __future__ import annotations

from typing import Final

from lora_export.core.errors import UnsupportedError

__all__ = ["GENAI_TYPES", "GENAI_VERSION", "genai_type"]

GENAI_VERSION: Final = "0.18"
"""The version of onnxruntime-genai that the table was tried with."""

_ANY: Final = "decoder"
"""The type of any decoder whose only state are keys and values."""

GENAI_TYPES: Final = {
    "ernie4_5": "ernie4_5",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "gpt2": _ANY,  # its own type joins keys and values in one tensor
    "gpt_oss": "gptoss",
    "granite": "granite",
    "hunyuan_v1_dense": "hunyuandensev1",
    "llama": "llama",
    "mistral": "mistral",
    "nemotron": "nemotron",
    "olmo": "olmo",
    "phi": "phi",
    "phi3": "phi3",
    "phimoe": "phimoe",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
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
        hint = f"It knows: {', '.join(sorted(GENAI_TYPES))}. Run it with: lora-export generate"
        raise UnsupportedError(msg, hint=hint)
    return found
