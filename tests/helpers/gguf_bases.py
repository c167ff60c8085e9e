"""Bases in GGUF for tests, written with the gguf package as llama.cpp's converter writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["SIZES", "random_blocks", "save_gguf", "write_gguf"]

SIZES: Final = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "n_positions": "context_length",
    "n_layer": "block_count",
    "n_inner": "feed_forward_length",
    "n_embd": "embedding_length",
    "n_head": "attention.head_count",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
_PERMUTED: Final = {"llama", "granite", "smollm3"}


def _as_neighbours(values: Array, heads: int) -> Array:
    """Return rows as ``LlamaModel.permute`` of convert_hf_to_gguf.py has them."""
    rows = values.shape[0]
    halves = values.reshape(heads, 2, rows // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def save_gguf(
    path: Path,
    architecture: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Array],
    *,
    kind: Callable[[str], str] = lambda _: "F32",
    **metadata: Any,
) -> dict[str, Array]:
    """Write a checkpoint of Hugging Face as GGUF.

    Args:
        path: The file.
        architecture: GGUF's name of it.
        config: The model's config.
        tensors: Its tensors, float32.
        kind: The type of each matrix by its name in GGUF; vectors are F32.
        metadata: Further metadata, or others: a dot is written as ``__``.

    Returns:
        The values that the file stands for, by the names in `tensors`.
    """
    layers = config.get("num_hidden_layers") or config["n_layer"]
    code = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(code, layers)
    stored: dict[str, tuple[Array, str]] = {}
    values: dict[str, Array] = {}
    for name, given in tensors.items():
        module, _, leaf = name.rpartition(".")
        theirs = f"{names.get_name(module)}.{leaf}"
        written = given
        undo: Callable[[Array], Array] = np.asarray
        if architecture in _PERMUTED and module.endswith(("q_proj", "k_proj")):
            heads = config[
                "num_attention_heads" if module.endswith("q_proj") else "num_key_value_heads"
            ]
            written = _as_neighbours(given, heads)
            order = _as_neighbours(np.arange(given.shape[0]), heads)
            undo = lambda found, order=order: found[np.argsort(order)]  # noqa: E731
        elif architecture.startswith("gemma") and name.endswith("norm.weight"):
            written = given + np.float32(1)
            undo = lambda found: found - np.float32(1)  # noqa: E731
        elif (
            architecture == "gpt2"
            and module.endswith(("c_attn", "c_proj", "c_fc"))
            and given.ndim == 2
        ):
            written, undo = given.T, np.transpose
        own = kind(theirs) if given.ndim == 2 else "F32"
        written = np.ascontiguousarray(written)
        number = gguf.GGMLQuantizationType[own]
        raw = gguf.quantize(written, number)
        values[name] = undo(gguf.dequantize(raw, number).reshape(written.shape))
        stored[theirs] = (raw, own)
    numbers = {
        f"{architecture}.{SIZES[k]}": v for k, v in config.items() if k in SIZES and v is not None
    }
    numbers[f"{architecture}.vocab_size"] = config["vocab_size"]
    if architecture == "llama":
        numbers["llama.rope.dimension_count"] = config["head_dim"]
    held = config.get("rope_parameters") or {}
    rope = held.get("full_attention", held).get("rope_theta")
    if rope is not None:
        numbers[f"{architecture}.rope.freq_base"] = float(rope)
    others = {key.replace("__", "."): value for key, value in metadata.items()}
    write_gguf(path, architecture, {**numbers, **others}, stored, tokens=config["vocab_size"])
    return values


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[Array, str]],
    *,
    tokens: int = 2,
) -> Path:
    """Write metadata and tensors, each with its type in GGUF; None leaves a key out."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    writer.add_array("tokenizer.ggml.tokens", [str(at) for at in range(tokens)])
    for key, value in metadata.items():
        if isinstance(value, bool | str):
            (writer.add_bool if isinstance(value, bool) else writer.add_string)(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, (raw, kind) in tensors.items():
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, raw, raw_dtype=None if kind in {"F32", "F16"} else number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> Array:
    """Return random blocks of a type, all of whose values are finite and small.

    Codes are random bytes; whatever may be a float16 scale is kept small by its exponent.
    """
    size, count_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, columns // size * count_bytes), np.uint8)
    blocks = raw.reshape(-1, count_bytes)
    for _ in range(64):
        with np.errstate(all="ignore"):
            values = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
        bad = ~(np.isfinite(values) & (np.abs(values) < 1e6)).all(axis=1)
        if not bad.any():
            return raw
        blocks[bad] = rng.integers(0, 256, (int(bad.sum()), count_bytes), np.uint8)
    msg = f"no finite blocks of {kind}"
    raise AssertionError(msg)
