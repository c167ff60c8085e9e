"""The rows of a fused weight that are q, k and v, or gate and up: by family, as a table.

    blocks        all of q, then all of k, then all of v, wide as the config says
    thirds        the same, of equal width
    halves        gate, then up
    per head      of each head: q, k, v (GPT-NeoX, BLOOM)
    per group     of each group of heads: its q, then k, then v (Falcon's newer models)
    in four       four slices, each q, v, k of its heads (CodeGen)

A family that is not listed is refused: rows in another order are another model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Rows = npt.NDArray[np.int64]
    Layout = Callable[[Mapping[str, Any], int], "dict[str, Rows] | None"]

__all__ = ["BLOCK_NAMES", "FUSED_NAMES", "LAYOUTS", "ROLES", "rows_of_parts"]

ROLES: Final[dict[str, str]] = {
    **dict.fromkeys(("q_proj", "query", "q", "to_q", "q_lin", "query_proj", "wq"), "q"),
    **dict.fromkeys(("k_proj", "key", "k", "to_k", "k_lin", "key_proj", "wk"), "k"),
    **dict.fromkeys(("v_proj", "value", "v", "to_v", "v_lin", "value_proj", "wv"), "v"),
    "gate_proj": "gate",
    "up_proj": "up",
}
"""The part of a fused weight that a module of its own would be, by the module's name."""

FUSED_NAMES: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv", "in_proj"), ("q", "k", "v")
    ),
    "gate_up_proj": ("gate", "up"),
}
"""Fused modules and what they hold; ``in_proj`` is that of the parameter ``in_proj_weight``."""

BLOCK_NAMES: Final = frozenset({"qkv_proj", "gate_up_proj", "in_proj"})
"""Those whose parts lie one below the other in whatever model has them."""


def _numbers(config: Mapping[str, Any], *keys: str) -> int | None:
    """Return the first setting that is a positive integer."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _heads(config: Mapping[str, Any]) -> int | None:
    return _numbers(config, "num_attention_heads", "n_head", "n_heads")


def _split(widths: Mapping[str, int], rows: int) -> dict[str, Rows] | None:
    """Return contiguous rows of these widths; None where they do not fill `rows`."""
    if sum(widths.values()) != rows:
        return None
    found: dict[str, Rows] = {}
    start = 0
    for role, width in widths.items():
        found[role] = np.arange(start, start + width)
        start += width
    return found


def _equal(roles: str) -> Layout:
    names = roles.split()

    def layout(_: Mapping[str, Any], rows: int) -> dict[str, Rows] | None:
        return _split(dict.fromkeys(names, rows // len(names)), rows)

    return layout


def _blocks(config: Mapping[str, Any], rows: int) -> dict[str, Rows] | None:
    heads = _heads(config)
    attention = config.get("attn_config")
    nested = attention if isinstance(attention, dict) else {}
    groups = _numbers(config, "num_key_value_heads") or _numbers(nested, "kv_n_heads") or heads
    if heads is None or groups is None or rows % (heads + 2 * groups):
        return None
    width = rows // (heads + 2 * groups)
    return _split({"q": heads * width, "k": groups * width, "v": groups * width}, rows)


def _per_group(heads: int, groups: int, rows: int) -> dict[str, Rows] | None:
    """Return the rows where each of `groups` has its heads' q, then one k, then one v."""
    if heads % groups or rows % (heads + 2 * groups):
        return None
    each = heads // groups
    table = np.arange(rows).reshape(groups, each + 2, rows // (heads + 2 * groups))
    return {
        "q": table[:, :each].reshape(-1),
        "k": table[:, each].reshape(-1),
        "v": table[:, each + 1].reshape(-1),
    }


def _per_head(config: Mapping[str, Any], rows: int) -> dict[str, Rows] | None:
    heads = _heads(config)
    return None if heads is None else _per_group(heads, heads, rows)


def _falcon(config: Mapping[str, Any], rows: int) -> dict[str, Rows] | None:
    heads = _heads(config)
    if heads is None:
        return None
    if config.get("new_decoder_architecture"):
        return _per_group(heads, _numbers(config, "num_kv_heads") or heads, rows)
    return _per_group(heads, 1 if config.get("multi_query", True) else heads, rows)


def _gpt2(config: Mapping[str, Any], rows: int) -> dict[str, Rows] | None:
    """Return thirds; None for a cross-attention's ``c_attn``, which holds k and v alone."""
    hidden = _numbers(config, "n_embd", "hidden_size")
    return _equal("q k v")(config, rows) if hidden and rows == 3 * hidden else None


def _bigcode(config: Mapping[str, Any], rows: int) -> dict[str, Rows] | None:
    heads, hidden = _heads(config), _numbers(config, "n_embd", "hidden_size")
    groups = 1 if config.get("multi_query", True) else heads
    if heads is None or groups is None or hidden is None:
        return None
    if rows * heads != hidden * (heads + 2 * groups):  # a cross-attention's
        return None
    return _per_group(heads, groups, rows)


def _codegen(config: Mapping[str, Any], rows: int) -> dict[str, Rows] | None:
    heads = _heads(config)
    if heads is None or heads % 4 or rows % 12:
        return None
    table = np.arange(rows).reshape(4, 3, rows // 12)
    return {role: table[:, at].reshape(-1) for role, at in (("q", 0), ("v", 1), ("k", 2))}


_THIRDS: Final = _equal("q k v")
_HALVES: Final = _equal("gate up")

LAYOUTS: Final[dict[str, dict[str, Layout]]] = {
    "bloom": {"query_key_value": _per_head},
    "codegen": {"qkv_proj": _codegen},
    "dbrx": {"Wqkv": _blocks},
    "decision_transformer": {"c_attn": _gpt2},
    "falcon": {"query_key_value": _falcon},
    "glm": {"gate_up_proj": _HALVES},
    "glm4": {"gate_up_proj": _HALVES},
    "gpt2": {"c_attn": _gpt2},
    "gpt_bigcode": {"c_attn": _bigcode},
    "gpt_neox": {"query_key_value": _per_head},
    "imagegpt": {"c_attn": _gpt2},
    "modernbert": {"Wqkv": _THIRDS},
    "mpt": {"Wqkv": _THIRDS},
    "openai-gpt": {"c_attn": _gpt2},
    "persimmon": {"query_key_value": _per_head},
    "phi3": {"qkv_proj": _blocks, "gate_up_proj": _HALVES},
    "phi4_multimodal": {"qkv_proj": _blocks, "gate_up_proj": _HALVES},
    "qwen2_5_vl": {"qkv": _THIRDS},
    "qwen2_vl": {"qkv": _THIRDS},
    "sam": {"qkv": _THIRDS},
}
"""Layouts by ``model_type`` and the fused module's name."""

_ANYWHERE: Final[dict[str, Layout]] = {"in_proj": _THIRDS}
"""torch's ``nn.MultiheadAttention``."""


def rows_of_parts(config: Mapping[str, Any], fused: str, rows: int) -> dict[str, Rows] | None:
    """Return the rows of each part of a fused weight; None where the layout is not known.

    Args:
        config: The model's ``config.json``; the section of its text model is looked into too.
        fused: The fused module's name, one of `FUSED_NAMES`.
        rows: How many outputs it has.
    """
    if fused in _ANYWHERE:
        return _ANYWHERE[fused](config, rows)
    text = config.get("text_config")
    for section in (config, text if isinstance(text, dict) else {}):
        layout = LAYOUTS.get(str(section.get("model_type")), {}).get(fused)
        if layout is not None:
            return layout({**config, **section}, rows)
    return None
