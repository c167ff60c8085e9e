"""The architectures that the benchmarks measure: configs, tensors, and adapters that fit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

Shape = tuple[int, ...]
_LABELS: Final = 3


@dataclass(frozen=True)
class Model:
    """A checkpoint to make: its ``config.json``, its tensors, and an adapter that fits it.

    Attributes:
        config: The content of ``config.json``.
        dtype: The dtype of the base's tensors.
        tensors: Returns the shape of each tensor of the base.
        adapted: Returns ``(in, out)`` of each module that the adapter updates.
        rank: The adapter's rank.
        task_type: The adapter's task, in PEFT's words.
        targets: The adapter's ``target_modules``.
        transposed: Whether the adapted weights are stored ``(in, out)``, as GPT-2's are.
    """

    config: dict[str, Any]
    dtype: str
    tensors: Callable[[dict[str, Any]], dict[str, Shape]]
    adapted: Callable[[dict[str, Any]], dict[str, tuple[int, int]]]
    rank: int
    task_type: str
    targets: tuple[str, ...]
    transposed: bool = False

    def adapter_tensors(self) -> dict[str, Shape]:
        """Return the shapes of the adapter's tensors, named as PEFT names them."""
        shapes: dict[str, Shape] = {}
        for module, (inputs, outputs) in self.adapted(self.config).items():
            shapes[f"base_model.model.{module}.lora_A.weight"] = (self.rank, inputs)
            shapes[f"base_model.model.{module}.lora_B.weight"] = (outputs, self.rank)
        for name, shape in self.tensors(self.config).items():
            if name.startswith("classifier."):  # PEFT saves the head of a SEQ_CLS model whole
                shapes[f"base_model.model.{name}"] = shape
        return shapes

    def adapter_config(self) -> dict[str, Any]:
        """Return the content of ``adapter_config.json``."""
        return {
            "peft_type": "LORA",
            "task_type": self.task_type,
            "r": self.rank,
            "lora_alpha": 2 * self.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.transposed,
            "inference_mode": True,
            "target_modules": list(self.targets),
            "modules_to_save": ["classifier", "score"] if self.task_type == "SEQ_CLS" else None,
        }


def _roberta_tensors(config: dict[str, Any]) -> dict[str, Shape]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, Shape] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    embeddings = "roberta.embeddings"
    shapes[f"{embeddings}.word_embeddings.weight"] = (config["vocab_size"], width)
    shapes[f"{embeddings}.position_embeddings.weight"] = (config["max_position_embeddings"], width)
    shapes[f"{embeddings}.token_type_embeddings.weight"] = (config["type_vocab_size"], width)
    norm(f"{embeddings}.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        layer = f"roberta.encoder.layer.{index}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, width)
        linear(f"{layer}.output.dense", width, inner)
        norm(f"{layer}.output.LayerNorm")
    linear("classifier.dense", width, width)
    linear("classifier.out_proj", _LABELS, width)
    return shapes


def _roberta_adapted(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    width = config["hidden_size"]
    return {
        f"roberta.encoder.layer.{index}.attention.self.{part}": (width, width)
        for index in range(config["num_hidden_layers"])
        for part in ("query", "value")
    }


def _llama_adapted(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    narrow = width // config["num_attention_heads"] * config["num_key_value_heads"]
    parts = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, narrow),
        "self_attn.v_proj": (width, narrow),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (width, inner),
        "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }
    return {
        f"model.layers.{index}.{part}": sizes
        for index in range(config["num_hidden_layers"])
        for part, sizes in parts.items()
    }


def _llama_tensors(config: dict[str, Any]) -> dict[str, Shape]:
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, width)}
    for module, (inputs, outputs) in _llama_adapted(config).items():
        shapes[f"{module}.weight"] = (outputs, inputs)
    for index in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{index}.{norm}.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def _gpt2_tensors(config: dict[str, Any]) -> dict[str, Shape]:
    width = config["n_embd"]
    shapes: dict[str, Shape] = {
        "transformer.wte.weight": (config["vocab_size"], width),
        "transformer.wpe.weight": (config["n_positions"], width),
    }
    parts = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    for index in range(config["n_layer"]):
        layer = f"transformer.h.{index}"
        for norm in ("ln_1", "ln_2"):
            shapes[f"{layer}.{norm}.weight"] = shapes[f"{layer}.{norm}.bias"] = (width,)
        for part, (inputs, outputs) in parts.items():  # Conv1D: (in, out)
            shapes[f"{layer}.{part}.weight"] = (inputs, outputs)
            shapes[f"{layer}.{part}.bias"] = (outputs,)
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (width,)
    return shapes


def _gpt2_adapted(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    width = config["n_embd"]
    return {
        f"transformer.h.{index}.attn.c_attn": (width, 3 * width)
        for index in range(config["n_layer"])
    }


_ROBERTA_CONFIG: Final[dict[str, Any]] = {
    "architectures": ["RobertaForSequenceClassification"],
    "model_type": "roberta",
    "vocab_size": 50265,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-05,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "id2label": {str(index): f"LABEL_{index}" for index in range(_LABELS)},
    "label2id": {f"LABEL_{index}": index for index in range(_LABELS)},
    "torch_dtype": "float32",
}
_LLAMA_CONFIG: Final[dict[str, Any]] = {  # TinyLlama-1.1B's
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}
_GPT2_MEDIUM: Final[dict[str, Any]] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 1024,
    "n_layer": 24,
    "n_head": 16,
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-05,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "torch_dtype": "float32",
}
_NARROW_GPT2: Final = {"vocab_size": 600, "n_embd": 64, "bos_token_id": 1, "eos_token_id": 1}
_LLAMA_7B: Final = {  # Llama-2-7B's
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
_LLAMA_110M: Final = {  # as _random_model.py's
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
_LLAMA_LONG: Final = {"num_hidden_layers": 4, "max_position_embeddings": 4608}
_NARROW_ROBERTA: Final = {"vocab_size": 600, "hidden_size": 48, "intermediate_size": 96}
_NARROW_LLAMA: Final = {"vocab_size": 600, "hidden_size": 128, "intermediate_size": 256}
_QUERY_VALUE: Final = ("query", "value")
_ALL_LINEAR: Final = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip


def _roberta(changes: dict[str, Any]) -> Model:
    config = {**_ROBERTA_CONFIG, **changes}
    return Model(config, "float32", _roberta_tensors, _roberta_adapted, 8, "SEQ_CLS", _QUERY_VALUE)


def _llama(changes: dict[str, Any], dtype: str = "float16") -> Model:
    config = {**_LLAMA_CONFIG, **changes, "torch_dtype": dtype}
    return Model(config, dtype, _llama_tensors, _llama_adapted, 16, "CAUSAL_LM", _ALL_LINEAR)


def _gpt2(changes: dict[str, Any]) -> Model:
    config = {**_GPT2_MEDIUM, **changes}
    return Model(
        config, "float32", _gpt2_tensors, _gpt2_adapted, 4, "CAUSAL_LM", ("c_attn",),
        transposed=True,
    )  # fmt: skip


MODELS: Final[dict[str, Model]] = {
    "gpt2-medium": _gpt2({}),
    "gpt2-narrow": _gpt2(_NARROW_GPT2),  # all 24 layers, hardly any weights
    "roberta-base": _roberta({}),
    "roberta-narrow": _roberta(_NARROW_ROBERTA),  # all 12 layers, hardly any weights
    "llama-1b": _llama({}),
    "llama-110m": _llama(_LLAMA_110M, "float32"),
    "llama-long": _llama({**_LLAMA_110M, **_LLAMA_LONG}, "float32"),  # for texts of 4,000 tokens
    "llama-narrow": _llama(_NARROW_LLAMA),  # all 22 layers, hardly any weights
    "llama-7b": _llama(_LLAMA_7B),
    "llama-7b-short": _llama({**_LLAMA_7B, "num_hidden_layers": 2}),  # full width, 1.3 GB
}
