"""Tiny models of families that tie weights, adapters of either side, and PEFT's unmerged answer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel

from lora_export.commands.merge import merge_checkpoint
from lora_export.core.adapter_spec import AdapterSpec

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 48
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "tie_word_embeddings": True,
}
_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """A model class with a tied base.

    Attributes:
        model_class: The class in transformers.
        config: Its config class, and settings of it.
        embedding: The last component of the input embedding's path.
        head: The same of the output embedding.
        inner: A module inside the layers.
    """

    model_class: str
    config: tuple[str, dict[str, Any]]
    embedding: str
    head: str
    inner: str

    @property
    def encoder_decoder(self) -> bool:
        """Whether it has a decoder with inputs of its own."""
        return self.inner == "q" or ("d_model" in self.config[1] and "OPT" not in self.model_class)

    def base(self) -> Any:
        """Return a model with random weights."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config[0])(**self.config[1])
        return getattr(transformers, self.model_class)(config).eval()

    def load(self, folder: Path) -> Any:
        """Return the model of a folder."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(transformers, self.model_class).from_pretrained(folder).eval()

    def logits(self, model: Any) -> Any:
        """Return what a model makes of fixed tokens."""
        ids = torch.arange(3, 17)[None]
        inputs = {"input_ids": ids}
        if self.model_class.startswith("Whisper"):
            states = torch.linspace(-1, 1, 160).reshape(1, 8, 20)
            inputs = {"input_features": states, "decoder_input_ids": ids}
        elif self.encoder_decoder:
            inputs["decoder_input_ids"] = ids.flip(1)
        with torch.no_grad():
            return model(**inputs).logits


FAMILIES: dict[str, Family] = {
    "albert": Family("AlbertForMaskedLM", ("AlbertConfig", {**_SIZES, "embedding_size": 16}),
                     "word_embeddings", "decoder", "query"),
    "bart": Family("BartForConditionalGeneration", ("BartConfig", _SEQ2SEQ),
                   "decoder.embed_tokens", "lm_head", "q_proj"),
    "bert": Family("BertForMaskedLM", ("BertConfig", _SIZES),
                   "word_embeddings", "decoder", "query"),
    "distilbert": Family(
        "DistilBertForMaskedLM",
        ("DistilBertConfig",
         {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 1, "n_heads": 4, "hidden_dim": 24}),
        "word_embeddings", "vocab_projector", "q_lin"),
    "electra": Family("ElectraForMaskedLM", ("ElectraConfig", {**_SIZES, "embedding_size": 16}),
                      "word_embeddings", "generator_lm_head", "query"),
    "gemma2": Family("Gemma2ForCausalLM",
                     ("Gemma2Config",
                      {**_SIZES, "head_dim": 4, "num_key_value_heads": 2,
                       "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0}),
                     "embed_tokens", "lm_head", "q_proj"),
    "gemma": Family("GemmaForCausalLM",
                    ("GemmaConfig", {**_SIZES, "head_dim": 4, "num_key_value_heads": 2}),
                    "embed_tokens", "lm_head", "q_proj"),
    "gpt2": Family("GPT2LMHeadModel",
                   ("GPT2Config",
                    {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 4}),
                   "wte", "lm_head", "c_attn"),
    "gpt_neox": Family("GPTNeoXForCausalLM", ("GPTNeoXConfig", _SIZES),
                       "embed_in", "lm_head", "query_key_value"),
    "llama": Family("LlamaForCausalLM", ("LlamaConfig", _SIZES),
                    "embed_tokens", "lm_head", "q_proj"),
    "mamba": Family("MambaForCausalLM",
                    ("MambaConfig", {"vocab_size": VOCABULARY, "hidden_size": 16,
                                     "num_hidden_layers": 1, "state_size": 4}),
                    "embeddings", "lm_head", "x_proj"),
    "mamba2": Family("Mamba2ForCausalLM",
                     ("Mamba2Config",
                      {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1,
                       "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1,
                       "chunk_size": 8, "tie_word_embeddings": True}),
                     "embeddings", "lm_head", "in_proj"),
    "mbart": Family("MBartForConditionalGeneration", ("MBartConfig", _SEQ2SEQ),
                    "decoder.embed_tokens", "lm_head", "q_proj"),
    "marian": Family("MarianMTModel", ("MarianConfig", _SEQ2SEQ),
                     "decoder.embed_tokens", "lm_head", "q_proj"),
    "opt": Family("OPTForCausalLM",
                  ("OPTConfig", {**_SIZES, "word_embed_proj_dim": 16, "ffn_dim": 24}),
                  "embed_tokens", "lm_head", "q_proj"),
    "pegasus": Family("PegasusForConditionalGeneration", ("PegasusConfig", _SEQ2SEQ),
                      "decoder.embed_tokens", "lm_head", "q_proj"),
    "rwkv": Family("RwkvForCausalLM",
                   ("RwkvConfig",
                    {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2,
                     "attention_hidden_size": 16, "tie_word_embeddings": True}),
                   "embeddings", "head", "receptance"),
    "t5": Family("T5ForConditionalGeneration", ("T5Config", _T5),
                 "decoder.embed_tokens", "lm_head", "q"),
    "whisper": Family("WhisperForConditionalGeneration",
                      ("WhisperConfig",
                       {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 10}),
                      "embed_tokens", "proj_out", "q_proj"),
}  # fmt: skip


def classifier(name: str) -> Family:
    """Return a classifier of texts with an encoder and a decoder: of T5, MT5 or Bart."""
    source = FAMILIES["bart" if name == "Bart" else "t5"]
    settings = {**source.config[1], "eos_token_id": 16, "num_labels": 3}
    model_class = f"{name}ForSequenceClassification"
    return replace(source, model_class=model_class, config=(f"{name}Config", settings))


QWEN2_VL = Family(
    "Qwen2VLForConditionalGeneration",
    (
        "Qwen2VLConfig",
        {
            "tie_word_embeddings": True,
            "text_config": {
                **_SIZES,
                "num_key_value_heads": 2,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0],
                                    "rope_theta": 10000.0},
            },
            "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2},
            "image_token_id": 40, "video_token_id": 41, "vision_start_token_id": 42,
            "vision_end_token_id": 43,
        },
    ),
    "embed_tokens", "lm_head", "k_proj",
)  # fmt: skip


GEMMA3 = Family(
    "Gemma3ForConditionalGeneration",
    (
        "Gemma3Config",
        {
            "text_config": {**_SIZES, "num_key_value_heads": 2, "head_dim": 4,
                            "sliding_window": 16},
            "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                              "intermediate_size": 16, "image_size": 8, "patch_size": 4},
            "mm_tokens_per_image": 1, "image_token_id": 40, "boi_token_index": 41,
            "eoi_token_index": 42,
        },
    ),
    "language_model.embed_tokens", "lm_head", "q_proj",
)  # fmt: skip


def unmerged(family: Family, base: Path, adapter: Path) -> Any:
    """Return PEFT's unmerged logits with the adapter of a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return family.logits(PeftModel.from_pretrained(family.load(base), adapter).eval())


def train(family: Family, base: Path, folder: Path, **settings: Any) -> Any:
    """Save an adapter with random values; return PEFT's unmerged logits, loaded from that file."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(family.load(base), LoraConfig(r=4, lora_alpha=8, **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape) * 0.3)
        model.save_pretrained(folder)
    return unmerged(family, base, folder)


def merge(base: Path, adapter: Path, output: Path, *, drop: tuple[str, ...] = ()) -> None:
    """Merge an adapter."""
    spec = AdapterSpec(name="x", source=str(adapter), drop=list(drop))
    merge_checkpoint(base, [spec], output)


def distance(one: Any, other: Any) -> float:
    """Return the relative difference of two results."""
    return float((one - other).norm() / other.norm())
