"""llama.cpp's adapters: one GGUF file, as its ``convert_lora_to_gguf.py`` writes them.

Tensors are ``<tensor>.weight.lora_a`` ``[r, in]`` and ``….lora_b`` ``[out, r]``, named as the
base's are in GGUF (``blk.0.attn_q``); for ``token_embd`` A is stored as ``[vocabulary, r]``. The
scale is the one that llama.cpp applies: ``adapter.lora.alpha / r``, or 1 where alpha is 0. (Its
converter writes PEFT's ``lora_alpha`` there even under rsLoRA and alpha patterns: such a file is
another adapter than the one it was made from.)

Names are mapped back by the tables of the ``gguf`` package, for the architectures whose modules
have one name each in Hugging Face. llama.cpp stores the rows of q and k of Llama and Granite as
neighbours (see `rotary`); the head counts are taken from the file or else from the base.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.canonical import LowRank
from lora_export.adapters.formats.open_archive import (
    finish,
    finite_number,
    require_pair,
    require_rank,
    transposed,
)
from lora_export.adapters.formats.rotary import head_count, in_halves
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.gguf_library import require_gguf, tensor_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.formats.open_archive import Opened, Options
    from lora_export.core.tensors import Tensor

__all__ = ["is_gguf", "read_gguf_adapter"]

_PLAIN: Final = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_LEAVES: Final[dict[str, tuple[str, ...]]] = {
    "llama": _PLAIN,
    "granite": _PLAIN,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "gemma": _PLAIN,
    "gemma2": _PLAIN,
    "gemma3": _PLAIN,
    "olmo2": _PLAIN,
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "starcoder2": (*_PLAIN[:4], "mlp.c_fc", "mlp.c_proj"),
}
"""GGUF's architectures, and the modules of a layer in Hugging Face's code for each."""

_REORDERED: Final = frozenset({"llama", "granite"})
"""Architectures whose q and k llama.cpp stores as neighbours."""

_WHOLE: Final[dict[str, str]] = {"token_embd": "model.embed_tokens", "output": "lm_head"}
_FACTOR: Final = re.compile(r"(?P<tensor>.+)\.weight\.lora_(?P<kind>[ab])")
_BLOCK: Final = re.compile(r"blk\.(\d{1,5})\.([a-z_0-9]+)")


def is_gguf(opened: Opened) -> bool:
    """Whether the file is GGUF."""
    return opened.weights.suffix == ".gguf"


def read_gguf_adapter(opened: Opened, options: Options) -> Adapter:
    """Read the adapter in a GGUF file.

    Raises:
        AdapterError: It is not an adapter, needed head counts are absent, or shapes disagree.
        UnsupportedError: An architecture, a tensor or a kind of adapter that is not in the tables.
        MissingRuntimeError: The ``gguf`` package is not installed.
    """
    architecture = _require_lora(opened)
    names = _names(architecture, opened.source)
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(opened.tensors.items()):
        match = _FACTOR.fullmatch(key)
        if match is None:
            msg = f"tensor {key!r} of adapter {opened.source!r} is not a factor of an update"
            raise UnsupportedError(msg, hint="Use the PEFT adapter that it was converted from.")
        modules.setdefault(match["tensor"], {})[match["kind"]] = tensor
    alpha = finite_number(
        opened.metadata.get("adapter.lora.alpha"), "the adapter.lora.alpha", opened.source
    )
    low_rank = []
    for tensor_name, pair in modules.items():
        heads = _heads(tensor_name, architecture, opened, options.base_config)
        low_rank.append(
            _update(tensor_name, pair, names, alpha=alpha, heads=heads, source=opened.source)
        )
    base_name = opened.metadata.get("general.base_model.0.name")
    return finish(opened, "gguf", low_rank, base_name=base_name)


def _require_lora(opened: Opened) -> str:
    """Return the architecture of a file that is required to be a plain LoRA."""
    kind = opened.metadata.get("general.type"), opened.metadata.get("adapter.type")
    if kind != ("adapter", "lora"):
        msg = f"{opened.source!r} is a GGUF file of the kind {str(kind)[:80]}, not a LoRA adapter"
        raise AdapterError(msg, hint="convert_lora_to_gguf.py of llama.cpp writes adapters.")
    if "adapter.alora.invocation_tokens" in opened.metadata:
        msg = f"adapter {opened.source!r} is an activated LoRA"
        raise UnsupportedError(msg, hint="It depends on the input: it has no plain merge.")
    architecture = opened.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _LEAVES:
        msg = f"adapter {opened.source!r} has the GGUF architecture {str(architecture)[:40]!r}"
        raise UnsupportedError(
            msg,
            hint=f"Supported: {', '.join(_LEAVES)}. Use the PEFT adapter that it was made from.",
        )
    return architecture


def _names(architecture: str, source: str) -> dict[str, str]:
    """Return the modules of layer 0 and the whole model: GGUF's name, Hugging Face's path.

    Raises:
        MissingRuntimeError: The ``gguf`` package is not installed.
    """
    require_gguf(f"adapter {source!r}")
    paths = [f"model.layers.0.{leaf}" for leaf in _LEAVES[architecture]]
    return tensor_names(architecture, (*paths, *_WHOLE.values()))


def _heads(
    tensor_name: str, architecture: str, opened: Opened, base_config: Mapping[str, Any] | None
) -> int | None:
    """Return the heads of a projection whose rows are stored as neighbours; None for the others."""
    match = _BLOCK.fullmatch(tensor_name)
    if architecture not in _REORDERED or not match or match[2] not in ("attn_q", "attn_k"):
        return None
    letter = match[2][-1]
    recorded = opened.metadata.get(f"{architecture}.attention.head_count")
    if letter == "k":
        recorded = opened.metadata.get(f"{architecture}.attention.head_count_kv", recorded)
    if isinstance(recorded, int) and not isinstance(recorded, bool) and recorded > 0:
        return recorded
    heads = None if base_config is None else head_count(base_config, letter)
    if heads is None:
        msg = (
            f"the rows of {tensor_name!r} in adapter {opened.source!r} are in llama.cpp's order, "
            "and the file does not record the number of heads"
        )
        raise AdapterError(
            msg, hint="Pass the base, whose config.json has the number: --base PATH."
        )
    return heads


def _update(
    tensor_name: str,
    pair: Mapping[str, Tensor],
    names: Mapping[str, str],
    *,
    alpha: float,
    heads: int | None,
    source: str,
) -> LowRank:
    match = _BLOCK.fullmatch(tensor_name)
    first = f"blk.0.{match[2]}" if match else tensor_name
    if first not in names:
        msg = f"adapter {source!r} adapts {tensor_name!r}, which has no known name in Hugging Face"
        raise UnsupportedError(msg, hint="Use the PEFT adapter that it was converted from.")
    module = names[first].replace(".0.", f".{int(match[1])}.") if match else names[first]
    a, b = require_pair(pair, ("a", "b"), module, source)
    embedding = first == "token_embd"
    if embedding:
        a = transposed(a)  # (vocabulary, r) -> (r, vocabulary)
    rank = require_rank(a.shape[0], b.shape[1], module, source)
    if heads is not None:
        b = in_halves(b, heads, source)
    return LowRank(module, a, b, alpha / rank if alpha else 1.0, embedding)
