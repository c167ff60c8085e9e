"""``genai_config.json``: what onnxruntime-genai has to know of a decoder.

Reference: https://onnxruntime.ai/docs/genai/reference/config.html
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.config_numbers import text_settings, whole_number
from lora_export.core.errors import UnsupportedError
from lora_export.layouts.genai_types import genai_type
from lora_export.ondevice.judge.decoding import PAST, PRESENT
from lora_export.weights.positions import POSITION_KEYS, count_positions, long_rope_threshold
from lora_export.weights.special_tokens import ids_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.json_file import JsonObject
    from lora_export.graph.spec.signature import Axis, Signature

__all__ = ["genai_config"]

_INPUTS: Final = ("input_ids", "attention_mask", "position_ids")
_KEYS: Final = ("past_key_names", "past_value_names")
_HEADS: Final = ("num_attention_heads", "n_head", "num_heads")
_WIDTHS: Final = ("hidden_size", "n_embd", "d_model")
_FAMILY_OF_PHI3: Final = frozenset({"phi3", "phimoe"})
_PHI3_SWITCH: Final = 4096
"""The length behind which onnxruntime-genai computes the cache of a Phi-3 again."""
_SEVERE: Final = 3
"""ONNX Runtime's log level of errors: it warns of each optional input of a swappable graph."""

_SEARCH: Final[Mapping[str, Any]] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
"""Settings of the search, and what transformers takes for each that a model does not set."""


def genai_config(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    signature: Signature,
    *,
    filename: str,
    quiet: bool,
    shared_buffer: bool = False,
) -> JsonObject:
    """Return ``genai_config.json``.

    Args:
        config: The model's ``config.json``.
        generation: Its ``generation_config.json``; empty where there is none.
        signature: The interface of the graph.
        filename: The graph's file.
        quiet: Whether warnings of ONNX Runtime are left out.
        shared_buffer: Whether past and present are one buffer, as long as a text may become.

    Raises:
        UnsupportedError: The runtime does not know the model's type, or its layers keep keys and
            values of several shapes.
    """
    text = text_settings(config)
    layers, heads, width = _cache(signature)
    length = _context_length(config)
    session: JsonObject = {"log_id": "onnxruntime-genai", "provider_options": []}
    if quiet:
        session["log_severity_level"] = _SEVERE
    names = set(signature.input_names)
    vocabulary = signature.outputs[0].axes[-1]
    return {
        "model": {
            **_tokens(text, generation),
            "context_length": length,
            "decoder": {
                "session_options": session,
                "filename": filename,
                "head_size": width,
                "hidden_size": _setting(text, _WIDTHS),
                "inputs": {
                    **{each: each for each in _INPUTS if each in names},
                    "past_key_names": f"{PAST}%d.key",
                    "past_value_names": f"{PAST}%d.value",
                },
                "outputs": {
                    "logits": signature.outputs[0].name,
                    "present_key_names": f"{PRESENT}%d.key",
                    "present_value_names": f"{PRESENT}%d.value",
                },
                "num_attention_heads": _setting(text, _HEADS),
                "num_hidden_layers": layers,
                "num_key_value_heads": heads,
            },
            "type": genai_type(str(config.get("model_type"))),
            "vocab_size": vocabulary
            if isinstance(vocabulary, int)
            else _setting(text, ("vocab_size",)),
        },
        "search": {
            **_search(generation, length),
            "past_present_share_buffer": shared_buffer,
        },
    }


def _cache(signature: Signature) -> tuple[int, int, int]:
    """Return layers, heads and width of the cache.

    Raises:
        UnsupportedError: The layers have several shapes.
    """
    kept = [each for each in signature.inputs if each.name.startswith(PAST)]
    shapes: set[tuple[Axis, Axis]] = {(each.axes[1], each.axes[-1]) for each in kept}
    first = next(iter(shapes), (0, 0))
    heads, width = first
    if len(shapes) != 1 or not isinstance(heads, int) or not isinstance(width, int):
        shown = ", ".join(sorted(f"{a} heads of {b}" for a, b in shapes)) or "nothing"
        msg = f"the layers keep keys and values of several shapes: {shown}"
        hint = "onnxruntime-genai takes one. Run it with: lora-export generate"
        raise UnsupportedError(msg, hint=hint)
    return len(kept) // 2, heads, width


def _context_length(config: Mapping[str, Any]) -> int:
    """Return how long a text may become.

    Where the rotary frequencies are others for long texts, a cache has to be computed again as a
    text outgrows the short ones: the runtime does so for Phi-3 and its one length. Elsewhere texts
    end there.
    """
    length = count_positions(config) or _setting(text_settings(config), POSITION_KEYS)
    if not length:
        msg = f"the config of {config.get('model_type')!r} does not say how long a text may become"
        hint = "Set max_position_embeddings in the export's hf/config.json."
        raise UnsupportedError(msg, hint=hint)
    switch = long_rope_threshold(config)
    if switch is None:
        return length
    recomputed = config.get("model_type") in _FAMILY_OF_PHI3 and switch == _PHI3_SWITCH
    return length if recomputed else min(length, switch)


def _setting(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    return next((whole_number(config, key) for key in keys if config.get(key)), 0)


def _tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> JsonObject:
    """Return the ids of the tokens that begin, end and pad a text."""
    found: JsonObject = {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for table in (generation, config):
            ids = ids_of(table.get(key))
            if ids is not None and ids != []:
                found[key] = ids
                break
    ends = found.get("eos_token_id", 0)
    end = ends[0] if isinstance(ends, list) else ends
    for key in ("bos_token_id", "pad_token_id"):
        value = found.get(key, end)
        found[key] = value[0] if isinstance(value, list) else value
    return {**found, "eos_token_id": ends}


def _search(generation: Mapping[str, Any], length: int) -> JsonObject:
    """Return the settings of the search: the model's own, where they are of the right type."""
    found = dict(_SEARCH)
    for key, default in _SEARCH.items():
        value = generation.get(key)
        if isinstance(default, bool):
            usable = isinstance(value, bool)
        else:
            usable = isinstance(value, int | float) and not isinstance(value, bool)
        if usable and value is not None and math.isfinite(value):
            found[key] = type(default)(value)
    return {
        **found,
        "early_stopping": True,
        "max_length": length,
    }
