"""torchtune's adapters: ``adapter_0.pt`` and its like, in torchtune's own names.

Keys are ``layers.<n>.attn.q_proj.lora_a.weight`` ``[r, in]``, ``….lora_b.weight`` ``[out, r]`` and,
under DoRA, ``….magnitude`` ``[out]`` (https://github.com/pytorch/torchtune,
``torchtune/modules/peft``). ``s = alpha / r`` with ``lora_alpha`` of ``adapter_config.json``, where
that was saved, or else the user's.

torchtune turns neighbouring rows of q and k where Hugging Face turns halves, for the bases whose
weights it reorders when it loads them; which those are is a table of their model types.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.canonical import LowRank
from lora_export.adapters.formats.open_archive import (
    finish,
    finite_number,
    given_alpha,
    require_pair,
    require_rank,
)
from lora_export.adapters.formats.rotary import head_count, in_halves, text_config
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.shown_value import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.formats.open_archive import Opened, Options
    from lora_export.core.tensors import Tensor

__all__ = ["is_torchtune", "read_torchtune"]

_LEAVES: Final[dict[str, str]] = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
"""The modules of a layer: torchtune's names, Hugging Face's names."""

_REORDERED: Final[dict[str, bool]] = {
    "llama": True,
    "mistral": True,
    "gemma": True,
    "gemma2": True,
    "qwen2": False,
    "qwen3": False,
}
"""Model types of bases, and whether torchtune reorders the rows of their q and k.

From its checkpointer (0.6.1; qwen3 from its main branch): ``hf_to_tune`` and ``gemma2_hf_to_tune``
permute, ``qwen2_hf_to_tune`` and ``qwen3_hf_to_tune`` do not. phi3 is absent: Hugging Face holds
its q, k and v as one matrix, and three low-rank updates are no single one of that.
"""

_FACTOR: Final = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<kind>[ab])\.weight|(?P<magnitude>magnitude))"
)
_LAYER: Final = re.compile(rf"layers\.(\d{{1,5}})\.({'|'.join(map(re.escape, _LEAVES))})")


def is_torchtune(opened: Opened) -> bool:
    """Whether a tensor is named ``<module>.lora_a.weight`` or ``<module>.lora_b.weight``."""
    return any(key.endswith((".lora_a.weight", ".lora_b.weight")) for key in opened.tensors)


def read_torchtune(opened: Opened, options: Options) -> Adapter:
    """Read an adapter in torchtune's names.

    Raises:
        AdapterError: Alpha or the base's config is needed and absent, or shapes disagree.
        UnsupportedError: A module or a base that is not in the tables.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(opened.tensors.items()):
        match = _FACTOR.fullmatch(key)
        if match is None:
            msg = f"tensor {key!r} of adapter {opened.source!r} has an unknown kind"
            raise UnsupportedError(
                msg, hint="Save the adapter alone: torchtune's save_adapter_weights_only=True."
            )
        modules.setdefault(match["module"], {})[match["kind"] or "magnitude"] = tensor
    alpha = _alpha(opened, options)
    low_rank = [
        _update(module, factors, alpha, opened, options.base_config)
        for module, factors in modules.items()
    ]
    name = opened.config.get("base_model_name_or_path")
    return finish(opened, "torchtune", low_rank, base_name=name)


def _alpha(opened: Opened, options: Options) -> float:
    given = given_alpha(options.alpha, opened.source)
    recorded = opened.config.get("lora_alpha")
    if recorded is None and given is None:
        msg = f"adapter {opened.source!r} of torchtune records no alpha"
        raise AdapterError(
            msg, hint="Give the lora_alpha of its recipe: --alpha 16, or its adapter_config.json."
        )
    if recorded is None:
        return float(given or 0)
    alpha = finite_number(recorded, "the lora_alpha", opened.source)
    if given is not None and given != alpha:
        msg = f"adapter {opened.source!r} records the lora_alpha {alpha:g}, not {given:g}"
        raise AdapterError(msg, hint="Leave --alpha out.")
    return alpha


def _update(
    module: str,
    factors: Mapping[str, Tensor],
    alpha: float,
    opened: Opened,
    base_config: Mapping[str, Any] | None,
) -> LowRank:
    source = opened.source
    match = _LAYER.fullmatch(module)
    if match is None and module != "output":
        msg = f"adapter {source!r} adapts {module!r}, which has no known name in Hugging Face"
        raise UnsupportedError(
            msg, hint="Let torchtune save it in PEFT's format (adapter_model.safetensors)."
        )
    pair = {name: tensor for name, tensor in factors.items() if name != "magnitude"}
    a, b = require_pair(pair, ("a", "b"), module, source)
    rank = require_rank(a.shape[0], b.shape[1], module, source)
    magnitude = factors.get("magnitude")
    if magnitude is not None and (magnitude.shape != (b.shape[0],) or not magnitude.dtype.floating):
        msg = f"tensor {magnitude.name!r} of adapter {source!r} has {list(magnitude.shape)}"
        raise AdapterError(msg, hint=f"Expected one number per output: [{b.shape[0]}].")
    if match is None:
        return LowRank("lm_head", a, b, alpha / rank, magnitude=magnitude)
    path = f"model.layers.{match[1]}.{_LEAVES[match[2]]}"
    heads = _heads_to_reorder(match[2], base_config, source)
    if heads is not None:
        b = in_halves(b, heads, source)
        magnitude = None if magnitude is None else in_halves(magnitude, heads, source)
    return LowRank(path, a, b, alpha / rank, magnitude=magnitude)


def _heads_to_reorder(leaf: str, base_config: Mapping[str, Any] | None, source: str) -> int | None:
    """Return the heads of a projection whose rows torchtune has reordered; None for the others."""
    if leaf not in ("attn.q_proj", "attn.k_proj"):
        return None
    if base_config is None:
        msg = f"the rows of {leaf} in adapter {source!r} are in torchtune's order"
        raise AdapterError(
            msg, hint="Pass the base, whose config.json has the number of heads: --base PATH."
        )
    kind = base_config.get("model_type")
    reordered = _REORDERED.get(kind) if isinstance(kind, str) else None
    if reordered is None:
        kind = text_config(base_config).get("model_type", kind)
        msg = f"torchtune's order of q and k is not known for a base of the type {shown(kind, 40)}"
        raise UnsupportedError(
            msg, hint="Let torchtune save it in PEFT's format (adapter_model.safetensors)."
        )
    if not reordered:
        return None
    heads = head_count(base_config, leaf[5])
    if heads is None:
        msg = f"the base's config has no number of heads, which adapter {source!r} needs"
        raise AdapterError(msg, hint="Expected num_attention_heads in config.json.")
    return heads
