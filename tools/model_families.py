"""The model families that are exported and compared with torch: one tiny config each.

Sizes are as small as the architecture allows while everything that is particular to it takes part:
windows are shorter than the inputs, heads share keys where the family does that, experts are more
than a token takes, and there are layers enough for equal ones to be left out of the trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["FAMILIES", "Family"]

VOCABULARY: Final = 320
LAYERS: Final = 6
WINDOW: Final = 5
POSITIONS: Final = 96

_GENERATION: Final = ("text-generation",)
_DECODER: Final = ("text-generation", "text-classification")
_ENCODER: Final = (
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "feature-extraction",
)
_CLASSIFIER: Final = ("text-classification", "token-classification")
_EMBEDDER: Final = (*_ENCODER, "sentence-similarity")

_BERT: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}
_ROBERTA: Final = {**_BERT, "pad_token_id": 1, "type_vocab_size": 1}
_TEXT2TEXT: Final = ("text2text-generation",)
_T5: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_BART: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.3,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_LLAMA: Final = {**_BERT, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_GEMMA: Final = {**_LLAMA, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}
_EXPERTS: Final = {"num_experts_per_tok": 2, "output_router_logits": False}
_FEATURES: Final = ("image-feature-extraction",)
_IMAGES: Final = ("image-classification", *_FEATURES)
_TOWERS: Final = (*_IMAGES, "feature-extraction")
_VIT: Final[dict[str, Any]] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 24,
    "patch_size": 8,
    "num_channels": 3,
}
_DEBERTA: Final = {
    **_BERT,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "pooler_hidden_size": 32,
}


_GPT2: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_TEXT: Final = {**_BERT, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: What the family is called.
        config: The class of its config in transformers.
        settings: The settings that make it tiny.
        tasks: The tasks that it is exported for.
        pooling: How token states become a sentence's, by sentence-transformers' names.
    """

    name: str
    config: str
    settings: dict[str, Any]
    tasks: tuple[str, ...]
    pooling: str = "mean"


FAMILIES: Final[tuple[Family, ...]] = (
    Family("GPT-2", "GPT2Config", _GPT2, _DECODER),
    Family(
        "GPT-Neo",
        "GPTNeoConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": LAYERS, "num_heads": 4,
         "max_position_embeddings": POSITIONS, "window_size": WINDOW,
         "attention_types": [[["global", "local"], LAYERS // 2]],
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        _GENERATION,
    ),
    Family("GPT-NeoX", "GPTNeoXConfig", _TEXT, _GENERATION),
    Family(
        "OPT",
        "OPTConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48,
         "num_hidden_layers": LAYERS, "num_attention_heads": 4, "pad_token_id": 1,
         "max_position_embeddings": POSITIONS, "bos_token_id": 2, "eos_token_id": 2},
        _GENERATION,
    ),
    Family(
        "BLOOM",
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        _GENERATION,
    ),
    Family("Llama", "LlamaConfig", _LLAMA, _DECODER),
    Family("Mistral", "MistralConfig", {**_LLAMA, "sliding_window": WINDOW}, _GENERATION),
    Family("Qwen2", "Qwen2Config", _LLAMA, _GENERATION),
    Family(
        "Qwen3",
        "Qwen3Config",
        {**_LLAMA, "head_dim": 8},
        (*_GENERATION, "sentence-similarity"),
        pooling="lasttoken",
    ),
    Family("Gemma", "GemmaConfig", {**_LLAMA, "head_dim": 8}, _GENERATION),
    Family("Gemma 2", "Gemma2Config", _GEMMA, _DECODER),
    Family("Gemma 3", "Gemma3TextConfig", _GEMMA, _DECODER),
    Family("Phi-3", "Phi3Config", _LLAMA, _GENERATION),
    Family(
        "Phi-3 (long)",
        "Phi3Config",
        {**_LLAMA, "original_max_position_embeddings": POSITIONS // 4,
         "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3],
                          "long_factor": [2.0, 3.0, 4.0, 5.0]}},
        _GENERATION,
    ),
    Family(
        "Falcon",
        "FalconConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS,
         "num_attention_heads": 4, "max_position_embeddings": POSITIONS,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        _GENERATION,
    ),
    Family(
        "Falcon (ALiBi)",
        "FalconConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS,
         "num_attention_heads": 4, "max_position_embeddings": POSITIONS, "alibi": True,
         "multi_query": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        _GENERATION,
    ),
    Family("StableLM", "StableLmConfig", _LLAMA, _GENERATION),
    Family("OLMo2", "Olmo2Config", _LLAMA, _GENERATION),
    Family("SmolLM3", "SmolLM3Config", _LLAMA, _GENERATION),
    Family("Phi", "PhiConfig", _LLAMA, _GENERATION),
    Family("Starcoder2", "Starcoder2Config", {**_LLAMA, "sliding_window": WINDOW}, _GENERATION),
    Family("Cohere2", "Cohere2Config", {**_LLAMA, "sliding_window": WINDOW}, _GENERATION),
    Family("GLM-4", "Glm4Config", {**_LLAMA, "head_dim": 8}, _GENERATION),
    Family(
        "Granite",
        "GraniteConfig",
        {**_LLAMA, "embedding_multiplier": 2.0, "attention_multiplier": 0.2,
         "residual_multiplier": 0.5, "logits_scaling": 2.0},
        _GENERATION,
    ),
    Family("GPT-J", "GPTJConfig", {**_GPT2, "rotary_dim": 4}, _GENERATION),
    Family("GPT-BigCode", "GPTBigCodeConfig", _GPT2, _GENERATION),
    Family(
        "MPT",
        "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": LAYERS,
         "max_seq_len": POSITIONS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        _GENERATION,
    ),
    Family(
        "Qwen3-MoE",
        "Qwen3MoeConfig",
        {**_LLAMA, **_EXPERTS, "head_dim": 8, "num_experts": 6, "moe_intermediate_size": 16},
        _GENERATION,
    ),
    Family("Mixtral", "MixtralConfig", {**_LLAMA, **_EXPERTS, "num_local_experts": 6}, _GENERATION),
    Family("OLMoE", "OlmoeConfig", {**_LLAMA, **_EXPERTS, "num_experts": 6}, _GENERATION),
    Family(
        "GPT-OSS",
        "GptOssConfig",
        {**_LLAMA, **_EXPERTS, "head_dim": 8, "num_local_experts": 6, "sliding_window": WINDOW},
        _GENERATION,
    ),
    Family(
        "DeepSeek-V3",
        "DeepseekV3Config",
        {**_LLAMA, **_EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 4,
         "topk_group": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 2,
         "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
         "v_head_dim": 8},
        _GENERATION,
    ),
    Family(
        "Mamba",
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 8,
         "num_hidden_layers": LAYERS},
        _GENERATION,
    ),
    Family(
        "RWKV",
        "RwkvConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS,
         "attention_hidden_size": 32, "context_length": POSITIONS},
        _GENERATION,
    ),
    Family("BERT", "BertConfig", _BERT, _EMBEDDER),
    Family("RoBERTa", "RobertaConfig", _ROBERTA, _ENCODER),
    Family("XLM-R", "XLMRobertaConfig", _ROBERTA, _EMBEDDER),
    Family(
        "DistilBERT",
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 32, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48,
         "max_position_embeddings": POSITIONS, "pad_token_id": 0},
        _ENCODER,
    ),
    Family("ALBERT", "AlbertConfig", {**_BERT, "embedding_size": 16}, _ENCODER),
    Family("ELECTRA", "ElectraConfig", {**_BERT, "embedding_size": 16}, _ENCODER),
    Family(
        "DeBERTa-v2",
        "DebertaV2Config",
        {**_DEBERTA, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3},
        _ENCODER,
    ),
    Family(
        "DeBERTa-v3",
        "DebertaV2Config",
        {**_DEBERTA, "pos_att_type": ["p2c", "c2p"], "share_att_key": True},
        _ENCODER,
    ),
    Family(
        "ModernBERT",
        "ModernBertConfig",
        {**_BERT, "local_attention": 2 * WINDOW, "global_attn_every_n_layers": 3,
         "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        _EMBEDDER,
        pooling="cls",
    ),
    Family("MPNet", "MPNetConfig", {**_BERT, "pad_token_id": 1}, _EMBEDDER),
    Family("CamemBERT", "CamembertConfig", _ROBERTA, _CLASSIFIER),
    Family("EuroBERT", "EuroBertConfig", {**_LLAMA, "mask_token_id": 3}, _CLASSIFIER),
    Family("NomicBERT", "NomicBertConfig", {**_BERT, "head_dim": 8}, _CLASSIFIER),
    Family(
        "MobileBERT",
        "MobileBertConfig",
        {**_BERT, "embedding_size": 16, "intra_bottleneck_size": 16},
        _CLASSIFIER,
    ),
    Family("ESM", "EsmConfig", {**_ROBERTA, "mask_token_id": 3}, _CLASSIFIER),
    Family("BigBird", "BigBirdConfig", _BERT, _CLASSIFIER),
    Family("BigBird (full)", "BigBirdConfig", {**_BERT, "attention_type": "original_full"},
           _CLASSIFIER),
    Family("Longformer", "LongformerConfig", {**_ROBERTA, "attention_window": 8}, _CLASSIFIER),
    Family("LayoutLM", "LayoutLMConfig", _BERT, _CLASSIFIER),
    Family(
        "XLNet",
        "XLNetConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": LAYERS, "n_head": 4, "d_inner": 48},
        _CLASSIFIER,
    ),
    Family("ViT", "ViTConfig", _VIT, _IMAGES),
    Family("DINOv2", "Dinov2Config", {**_VIT, "mlp_ratio": 2}, _IMAGES),
    Family("DINOv3", "DINOv3ViTConfig", {**_VIT, "num_register_tokens": 2}, _FEATURES),
    Family("BEiT", "BeitConfig", {**_VIT, "use_relative_position_bias": True}, _IMAGES),
    Family(
        "Swin",
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2],
         "window_size": 4},
        _IMAGES,
    ),
    Family(
        "ConvNeXt",
        "ConvNextConfig",
        {"image_size": 32, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 2]},
        _IMAGES,
    ),
    Family(
        "SegFormer",
        "SegformerConfig",
        {"image_size": 32, "num_encoder_blocks": 2, "depths": [2, 2], "sr_ratios": [2, 1],
         "hidden_sizes": [16, 32], "patch_sizes": [7, 3], "strides": [4, 2],
         "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]},
        _IMAGES,
    ),
    Family("CLIP", "CLIPConfig", {"text_config": _TEXT, "vision_config": _VIT}, _TOWERS),
    Family("CLIP, images", "CLIPVisionConfig", _VIT, _FEATURES),
    Family("CLIP, text", "CLIPTextConfig", _TEXT, ("feature-extraction",)),
    Family("SigLIP", "SiglipConfig", {"text_config": _TEXT, "vision_config": _VIT}, _TOWERS),
    Family("SigLIP, images", "SiglipVisionConfig", _VIT, _FEATURES),
    Family("T5", "T5Config", _T5, _TEXT2TEXT),
    Family(
        "T5 v1.1",
        "T5Config",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
         "num_decoder_layers": 3},
        _TEXT2TEXT,
    ),
    Family("mT5", "MT5Config", {**_T5, "tie_word_embeddings": False}, _TEXT2TEXT),
    Family("UMT5", "UMT5Config", {**_T5, "tie_word_embeddings": False}, _TEXT2TEXT),
    Family("BART", "BartConfig", _BART, _TEXT2TEXT),
    Family("mBART", "MBartConfig", _BART, _TEXT2TEXT),
    Family("Marian", "MarianConfig", _BART, _TEXT2TEXT),
    Family("Pegasus", "PegasusConfig", _BART, _TEXT2TEXT),
    Family("M2M100", "M2M100Config", _BART, _TEXT2TEXT),
    Family("Blenderbot", "BlenderbotConfig", _BART, _TEXT2TEXT),
    Family(
        "LED",
        "LEDConfig",
        {**_BART, "attention_window": 8, "max_encoder_position_embeddings": POSITIONS,
         "max_decoder_position_embeddings": POSITIONS},
        _TEXT2TEXT,
    ),
    Family(
        "Whisper",
        "WhisperConfig",
        {**_BART, "num_mel_bins": 8, "max_source_positions": 20,
         "max_target_positions": POSITIONS},
        ("automatic-speech-recognition",),
    ),
)  # fmt: skip
