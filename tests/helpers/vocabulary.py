"""Adapters of models whose vocabulary training changed, and the model that PEFT makes of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "FAMILIES",
    "TOKENS",
    "WAYS",
    "Family",
    "logits_of",
    "resized_peft",
    "save_base",
    "save_grown",
]

TOKENS: Final = 128
_WIDTH: Final = 32
_TEXT: Final = {
    "vocab_size": TOKENS,
    "hidden_size": _WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
}
_LLAMA: Final = {**_TEXT, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_BART: Final = {
    "vocab_size": TOKENS,
    "d_model": _WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "init_std": 0.3,
}
_WHISPER: Final = {
    **_BART,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 48,
}
_T5: Final = {
    "vocab_size": TOKENS,
    "d_model": _WIDTH,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_QWEN2_VL: Final = {
    "text_config": {
        **_LLAMA,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    },
    "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": _WIDTH, "num_heads": 2},
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 7,
    "vision_end_token_id": 8,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Family:
    """A tiny model, and the names of its embeddings.

    Attributes:
        config: The class of its config.
        model: Its class.
        task: The task of its export.
        settings: Its config.
        embedding: The module of the token embeddings.
        head: The module of the output embeddings.
        target: The module that LoRA changes.
    """

    config: str
    model: str
    task: str
    settings: dict[str, Any]
    embedding: str = "embed_tokens"
    head: str = "lm_head"
    target: str = "q_proj"


def _decoder(name: str, settings: dict[str, Any], **names: str) -> Family:
    return Family(f"{name}Config", f"{name}ForCausalLM", "text-generation", settings, **names)


def _encoder(name: str, head: str, **settings: Any) -> Family:
    return Family(
        f"{name}Config", f"{name}ForMaskedLM", "fill-mask", {**_TEXT, **settings},
        "word_embeddings", head, "query",
    )  # fmt: skip


def _text_to_text(config: str, model: str, settings: dict[str, Any], **names: str) -> Family:
    return Family(config, model, "text2text-generation", settings, **names)


FAMILIES: Final[dict[str, Family]] = {
    "llama": _decoder("Llama", {**_LLAMA, "tie_word_embeddings": False}),
    "llama-tied": _decoder("Llama", {**_LLAMA, "tie_word_embeddings": True}),
    "gemma": _decoder("Gemma", {**_LLAMA, "head_dim": 8}),
    "opt": _decoder("OPT", {**_TEXT, "ffn_dim": 48, "word_embed_proj_dim": _WIDTH}),
    "gpt2": Family(
        "GPT2Config", "GPT2LMHeadModel", "text-generation",
        {"vocab_size": TOKENS, "n_embd": _WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 96,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        "wte", "lm_head", "c_attn",
    ),
    "gptj": _decoder(
        "GPTJ", {"vocab_size": TOKENS, "n_embd": _WIDTH, "n_layer": 2, "n_head": 4,
                 "n_positions": 96, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2},
        embedding="wte",
    ),
    "bert": _encoder("Bert", "decoder"),
    "roberta": _encoder("Roberta", "decoder", pad_token_id=1, type_vocab_size=1),
    "t5": _text_to_text("T5Config", "T5ForConditionalGeneration", _T5, embedding="shared",
                        target="q"),
    "bart": _text_to_text("BartConfig", "BartForConditionalGeneration", _BART, embedding="shared"),
    "pegasus": _text_to_text("PegasusConfig", "PegasusForConditionalGeneration", _BART,
                             embedding="shared"),
    "marian": _text_to_text("MarianConfig", "MarianMTModel",
                            {**_BART, "decoder_vocab_size": TOKENS}, embedding="shared"),
    "whisper": Family("WhisperConfig", "WhisperForConditionalGeneration",
                      "automatic-speech-recognition", _WHISPER, head="proj_out"),
    "qwen2-vl": Family("Qwen2VLConfig", "Qwen2VLForConditionalGeneration", "image-text-to-text",
                       _QWEN2_VL),
}  # fmt: skip
"""Every way in which a family holds one entry per token."""

WAYS: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "plain": ({}, {"save_embedding_layers": False}),
    "saved whole": ({"modules_to_save": ["E", "H"]}, {"save_embedding_layers": False}),
    "saved because resized": ({}, {"save_embedding_layers": True}),
    "embedding trained": ({"modules_to_save": ["E"]}, {"save_embedding_layers": True}),
    "head trained": ({"modules_to_save": ["H"]}, {"save_embedding_layers": True}),
    "LoRA on both": ({"target_modules": ["T", "E", "H"]}, {"save_embedding_layers": True}),
    "LoRA on the embedding": ({"target_modules": ["T", "E"]}, {"save_embedding_layers": True}),
    "rows": ({"trainable_token_indices": "rows"}, {"save_embedding_layers": True}),
}
"""``LoraConfig`` and ``save_pretrained``; E, H and T are the family's names."""


def save_base(family: Family, folder: Path, **changes: Any) -> Path:
    """Save a random base; buffers are random too."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, family.config)(**{**family.settings, **changes})
    model = getattr(transformers, family.model)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    model.eval().save_pretrained(folder)
    return folder


def resized_base(family: Family, base: Path, size: int, *, seed: int = 1, **how: Any) -> Any:
    """Return the base with `size` tokens; the new ones get random values."""
    import torch
    import transformers

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, family.model).from_pretrained(base)
        model.resize_token_embeddings(size, mean_resizing=False, **how)
    return model


def save_grown(
    family: Family,
    base: Path,
    folder: Path,
    way: str,
    size: int,
    *,
    strength: float = 0.05,
    **how: Any,
) -> Any:
    """Save an adapter trained on the resized base; return its model, unmerged."""
    import peft
    import torch

    names = {"E": family.embedding, "H": family.head, "T": family.target}
    settings, saving = WAYS[way]
    wanted: dict[str, Any] = {"target_modules": [family.target]}
    for key, value in settings.items():
        wanted[key] = (
            [5, TOKENS - 1, size - 1, size - 2]
            if value == "rows"
            else [names[each] for each in value]
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = resized_base(family, base, size, **how)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **wanted))
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * strength)
        wrapped.eval().save_pretrained(folder, **saving)
    return wrapped


def resized_peft(family: Family, base: Path, adapter: Path, size: int) -> Any:
    """Return the adapter as PEFT loads it, unmerged, on a base resized with other new rows."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = resized_base(family, base, size, seed=99)
        return peft.PeftModel.from_pretrained(model, adapter).eval()


def logits_of(model: Any, size: int) -> Any:
    """Return the logits for a text with the first and the last tokens of the vocabulary."""
    import torch

    last = size - 1
    ids = torch.tensor([[5, 9, 17, last, 64, 2], [last - 1, 8, 3, 90, last, 7]])
    inputs = {"input_ids": ids}
    if model.config.model_type == "whisper":
        features = torch.randn((2, 8, 40), generator=torch.Generator().manual_seed(3))
        inputs = {"input_features": features, "decoder_input_ids": ids}
    elif model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
    with torch.inference_mode():
        return model(**inputs).logits
