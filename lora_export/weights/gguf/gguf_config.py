"""The ``config.json`` that the metadata of a GGUF file stand for.

Metadata hold what llama.cpp computes with, not all that a config says. Where something is missing
that changes the result, the file is refused without the model's own ``config.json`` beside it.
That one is taken where it is there; it has to agree with the metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import CheckpointError, UnsupportedError
from lora_export.core.shown_value import shown
from lora_export.weights.gguf.architectures import ARCHITECTURES
from lora_export.weights.quantized.panels import damaged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.json_file import JsonObject
    from lora_export.weights.gguf.architectures import Architecture
    from lora_export.weights.gguf.gguf_parts import GgufParts

__all__ = ["architecture_of", "derived_config", "require_agreement", "require_sizes"]

_HINT: Final = "Put the model's own config.json beside the file."
_SPECIAL_TOKENS: Final = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
_FACTORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that hold what a config says about rotary embeddings."""

_SIZES: Final = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "",
    "intermediate_size": "n_inner",
    "vocab_size": "",
    "head_dim": "",
}
"""Settings that shapes follow from, and their names in GPT-2's config."""

_LARGE_GEMMA: Final = {"gemma2": 46, "gemma3": 62}
"""The layers of the models whose queries are scaled by hidden size over heads (llama.cpp)."""

_LARGEST: Final = 1 << 31
_THETA: Final = 10000.0
"""The base of rotary embeddings where metadata are silent (llama.cpp)."""


def architecture_of(parts: GgufParts) -> tuple[str, Architecture]:
    """Return the architecture of a file, with its name.

    Raises:
        CheckpointError: It names none, or is an adapter.
        UnsupportedError: It is not in the table.
    """
    name = parts.metadata.get("general.architecture")
    kind = parts.metadata.get("general.type", "model")
    if kind != "model":
        msg = f"{str(parts.path)!r} is a GGUF file of the kind {shown(kind)}, not a model"
        raise CheckpointError(msg, hint="Give the GGUF file of the base.")
    if not isinstance(name, str):
        msg = f"{str(parts.path)!r} names no general.architecture"
        raise damaged(msg)
    row = ARCHITECTURES.get(name)
    experts = parts.metadata.get(f"{name}.expert_count")
    if row is None or experts:
        what = f"{shown(name)} with experts" if row is not None else shown(name)
        msg = f"the base {str(parts.path)!r} has the GGUF architecture {what}, which is not read"
        known = ", ".join(ARCHITECTURES)
        hint = f"Give the original checkpoint. Architectures that are read: {known}."
        raise UnsupportedError(msg, hint=hint)
    return name, row


def derived_config(parts: GgufParts) -> JsonObject:
    """Return the config that metadata and shapes give.

    Raises:
        CheckpointError: A number is missing or impossible.
        UnsupportedError: The result depends on something that metadata do not say.
    """
    name, row = architecture_of(parts)
    config = _sizes(parts, name, row)
    if any(each in parts.tensors for each in _FACTORS):
        raise _incomplete(parts, "its rotary embeddings are scaled by frequencies")
    config |= row.settings
    if "rope_theta" in row.keys.values():
        config.setdefault("rope_theta", _THETA)
    config |= _head(parts, name, row, config)
    config |= _scaling(parts, name)
    config |= _biases(parts, name)
    config |= {
        theirs: value
        if isinstance(value := parts.metadata.get(key), int) and value < config["vocab_size"]
        else None
        for key, theirs in _SPECIAL_TOKENS.items()
    }
    if name in _LARGE_GEMMA:
        large = config["num_hidden_layers"] == _LARGE_GEMMA[name]
        per_head = config["hidden_size"] // config["num_attention_heads"]
        config["query_pre_attn_scalar"] = per_head if large else config["head_dim"]
    tied = "output.weight" not in parts.tensors
    return {
        "architectures": [row.model],
        "model_type": row.model_types[0],
        **config,
        "tie_word_embeddings": tied,
        "dtype": "float32",
    }


def _incomplete(parts: GgufParts, why: str) -> UnsupportedError:
    msg = f"the config of the base {str(parts.path)!r} does not follow from its metadata: {why}"
    return UnsupportedError(msg, hint=_HINT)


def _sizes(parts: GgufParts, name: str, row: Architecture) -> JsonObject:
    """Return the settings that metadata hold, required to be numbers."""
    found: JsonObject = {}
    for key, theirs in row.keys.items():
        whole = f"{name}.{key}"
        if whole not in parts.metadata:
            continue
        value = parts.metadata[whole]
        if value is None:
            raise _incomplete(parts, f"{whole} differs from layer to layer")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < _LARGEST
        ):
            msg = f"{str(parts.path)!r} says {whole}: {shown(value)}"
            raise damaged(f"{msg}; a positive number is expected")
        found[theirs] = value
    embeddings = parts.tensors.get("token_embd.weight")
    if embeddings is None:
        msg = f"the base {str(parts.path)!r} has no tensor 'token_embd.weight'"
        raise damaged(msg)
    found["vocab_size"] = embeddings.shape[0]
    wanted = ("block_count", "embedding_length", "attention.head_count")
    if lacking := next((each for each in wanted if f"{name}.{each}" not in parts.metadata), None):
        msg = f"{str(parts.path)!r} does not say {name}.{lacking}"
        raise damaged(msg)
    return found


def _head(parts: GgufParts, name: str, row: Architecture, config: Mapping[str, Any]) -> JsonObject:
    """Return the size of a head, and the part of it that is rotated where that is not all."""
    heads = config.get("num_attention_heads") or config["n_head"]
    hidden = config.get("hidden_size") or config["n_embd"]
    rotated = parts.metadata.get(f"{name}.rope.dimension_count")
    size = parts.metadata.get(f"{name}.attention.key_length")
    if size is None:
        size = rotated if row.head_size and isinstance(rotated, int) else hidden // heads
    if not isinstance(size, int) or size <= 0:
        msg = f"{str(parts.path)!r} says {name}.attention.key_length: {shown(size)}"
        raise damaged(msg)
    if size != hidden // heads and not row.head_size:
        raise _incomplete(parts, f"its heads have {size} rows, {hidden} / {heads} are expected")
    found: JsonObject = {"head_dim": size} if row.head_size else {}
    if isinstance(rotated, int) and rotated != size:
        if row.model_types[0] != "phi3":
            raise _incomplete(parts, f"{rotated} of the {size} rows of a head are rotated")
        found["partial_rotary_factor"] = rotated / size
    return found


def _scaling(parts: GgufParts, name: str) -> JsonObject:
    """Return how positions are scaled.

    Raises:
        UnsupportedError: It is another way than by one factor.
    """
    kind = parts.metadata.get(f"{name}.rope.scaling.type", "none")
    if kind == "none":
        return {}
    factor = parts.metadata.get(f"{name}.rope.scaling.factor")
    if kind != "linear" or not isinstance(factor, float | int):
        raise _incomplete(parts, f"its rotary embeddings are scaled ({shown(kind)})")
    return {"rope_scaling": {"rope_type": "linear", "factor": factor}}


def _biases(parts: GgufParts, name: str) -> JsonObject:
    """Return which products have biases, where a config says so."""
    if name in {"gpt2", "starcoder2", "qwen2", "phi3"}:
        return {}
    attention = {f"blk.0.attn_{each}.bias" in parts.tensors for each in ("q", "k", "v", "output")}
    gated = {f"blk.0.ffn_{each}.bias" in parts.tensors for each in ("gate", "up", "down")}
    if len(attention) > 1 or len(gated) > 1:
        raise _incomplete(parts, "some products of a layer have biases, and others have none")
    found = {"attention_bias": attention.pop(), "mlp_bias": gated.pop()}
    return {key: value for key, value in found.items() if value}


def require_agreement(parts: GgufParts, config: Mapping[str, Any]) -> None:
    """Require that the ``config.json`` beside a file does not contradict its metadata.

    Raises:
        CheckpointError: It does; the first setting that differs is named.
    """
    name, row = architecture_of(parts)
    said = config.get("model_type")
    differs: tuple[str, object, object] | None = None
    if said not in row.model_types:
        differs = ("model_type", said, " or ".join(row.model_types))
    sizes = _sizes(parts, name, row)
    for key, old in _SIZES.items():
        held, stored = config.get(key, config.get(old)), sizes.get(key, sizes.get(old))
        if differs is None and None not in (held, stored) and held != stored:
            differs = (key, held, stored)
    if differs is not None:
        key, held, stored = differs
        msg = f"config.json beside {str(parts.path)!r} says {key}: {shown(held)}, the file {stored}"
        raise CheckpointError(msg, hint="They are not of one model: move config.json away.")


def require_sizes(parts: GgufParts, config: Mapping[str, Any]) -> None:
    """Require that the sizes that shapes follow from are positive integers where they are there.

    Raises:
        CheckpointError: One is something else; it is named, with its value.
    """
    for name in (*_SIZES, *filter(None, _SIZES.values())):
        value = config.get(name)
        if value is not None and (type(value) is not int or not 0 < value < _LARGEST):
            msg = f"the config of the base {str(parts.path)!r} says {name}: {shown(value)}"
            raise damaged(f"{msg}; a positive integer is expected")
