"""The architectures that are read from GGUF, as one table.

``general.architecture`` names one. Its row says which modules a layer has in Hugging Face's code,
what llama.cpp's converter did to the values, and what a ``config.json`` says about such a model
that metadata do not. Source: llama.cpp ``convert_hf_to_gguf.py``, the class of each architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ARCHITECTURES", "Architecture"]

_ATTENTION: Final = tuple(f"self_attn.{each}_proj" for each in "qkvo")
_GATED: Final = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_QK_NORMS: Final = ("self_attn.q_norm", "self_attn.k_norm")
_SANDWICH: Final = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_LLAMA: Final = (*_ATTENTION, *_GATED, *_NORMS)
_WHOLE: Final = ("model.embed_tokens", "model.norm", "lm_head")

_SILU: Final = {"hidden_act": "silu"}
_GELU: Final = {"hidden_activation": "gelu_pytorch_tanh"}
_SIZES: Final = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": "rope_theta",
}
_RMS: Final = {**_SIZES, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_SOFT_CAPS: Final = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
}


@dataclass(frozen=True)
class Architecture:
    """An architecture of GGUF in Hugging Face's terms.

    Attributes:
        model_types: The model types that it stands for; a derived config has the first.
        model: The class with output embeddings.
        modules: The modules of a layer.
        keys: Keys of the config by those of metadata, without the architecture's name.
        settings: What the config of every such model says.
        whole: The modules outside of layers.
        layers: Where layers are.
        reordered: Modules whose rows llama.cpp reorders for its rotary layout.
        shifted: The end of the names of parameters that are stored plus one; "" for none.
        optional: Modules that a model of this kind may be without.
        head_size: Whether the config names the size of a head.
    """

    model_types: tuple[str, ...]
    model: str
    modules: tuple[str, ...]
    keys: Mapping[str, str] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    whole: tuple[str, ...] = _WHOLE
    layers: str = "model.layers"
    reordered: tuple[str, ...] = ()
    shifted: str = ""
    optional: tuple[str, ...] = ()
    head_size: bool = True


_REORDERED: Final = ("self_attn.q_proj", "self_attn.k_proj")
_GRANITE: Final = {
    **_RMS,
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_GPT2: Final = {
    "context_length": "n_positions",
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_GPT2_MODULES: Final = (
    "ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj",
)  # fmt: skip

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "llama": Architecture(
        ("llama", "mistral"), "LlamaForCausalLM", _LLAMA, _RMS, _SILU, reordered=_REORDERED
    ),
    "granite": Architecture(
        ("granite",), "GraniteForCausalLM", _LLAMA, _GRANITE, _SILU, reordered=_REORDERED,
        head_size=False,
    ),
    "smollm3": Architecture(
        ("smollm3",), "SmolLM3ForCausalLM", _LLAMA, _RMS, _SILU, reordered=_REORDERED,
        head_size=False,
    ),
    "qwen2": Architecture(
        ("qwen2",), "Qwen2ForCausalLM", _LLAMA, _RMS, _SILU, head_size=False
    ),
    "qwen3": Architecture(
        ("qwen3",), "Qwen3ForCausalLM", (*_LLAMA, *_QK_NORMS), _RMS, _SILU
    ),
    "olmo2": Architecture(
        ("olmo2",), "Olmo2ForCausalLM",
        (*_ATTENTION, *_GATED, *_QK_NORMS, *_NORMS[1:], _SANDWICH[3]), _RMS, _SILU,
        head_size=False,
    ),
    "phi3": Architecture(
        ("phi3",), "Phi3ForCausalLM",
        ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", *_NORMS),
        {**_RMS, "rope.scaling.original_context_length": "original_max_position_embeddings",
         "attention.sliding_window": "sliding_window"}, _SILU, head_size=False,
    ),
    "starcoder2": Architecture(
        ("starcoder2",), "Starcoder2ForCausalLM",
        (*_ATTENTION, "mlp.c_fc", "mlp.c_proj", *_NORMS),
        {**_SIZES, "attention.layer_norm_epsilon": "norm_epsilon"},
        {"hidden_act": "gelu_pytorch_tanh", "use_bias": True}, head_size=False,
    ),
    "gemma": Architecture(
        ("gemma",), "GemmaForCausalLM", _LLAMA, _RMS, _GELU, shifted="norm.weight"
    ),
    "gemma2": Architecture(
        ("gemma2",), "Gemma2ForCausalLM", (*_ATTENTION, *_GATED, *_SANDWICH),
        {**_RMS, **_SOFT_CAPS}, _GELU, shifted="norm.weight",
    ),
    "gemma3": Architecture(
        ("gemma3_text",), "Gemma3ForCausalLM", (*_ATTENTION, *_GATED, *_SANDWICH, *_QK_NORMS),
        {**_RMS, "attention.sliding_window": "sliding_window"},
        {**_GELU, "rope_local_base_freq": 10000.0}, shifted="norm.weight",
    ),
    "gpt2": Architecture(
        ("gpt2",), "GPT2LMHeadModel", _GPT2_MODULES, _GPT2, {"activation_function": "gelu_new"},
        whole=("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"),
        layers="transformer.h", head_size=False,
    ),
}  # fmt: skip
"""The architectures, by the name that GGUF has for them."""
