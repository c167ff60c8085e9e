"""Text-encoder adapters of Stable Diffusion: kohya's names, and diffusers' older ones.

kohya (https://github.com/kohya-ss/sd-scripts) writes ``lora_te_<module>.lora_down.weight``
``[r, in]``, ``….lora_up.weight`` ``[out, r]`` and ``….alpha``, with the dots of the module's path
as underscores; diffusers wrote ``text_encoder.<module>.lora_linear_layer.down.weight`` and
``….up.weight``, or ``….lora.down.weight``. ``s = alpha / r``; without an alpha it is r, so s = 1.

Modules of CLIP's text model are read. Those of a U-Net or a second text encoder, and other methods
(LoCon, LoHa, LoKr, DoRA of LyCORIS) are refused by name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lora_export.adapters.canonical import LowRank
from lora_export.adapters.formats.open_archive import finish, require_pair, require_rank, scalar
from lora_export.core.errors import AdapterError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.formats.open_archive import Opened, Options
    from lora_export.core.tensors import Tensor

__all__ = ["is_kohya", "read_kohya"]

_PARTS: Final[dict[str, str | None]] = {
    "lora_te_": "text encoder",
    "lora_te1_": "text encoder",
    "text_encoder.": "text encoder",
    "lora_te2_": "second text encoder",
    "text_encoder_2.": "second text encoder",
    "lora_te3_": None,
    "text_encoder_3.": None,
    "lora_unet_": None,
    "unet.": None,
    "lora_transformer_": None,
    "transformer.": None,
    "lora_prior_": None,
}
"""How the keys of each part of a pipeline begin; None where it is no CLIP text model."""

_SUFFIXES: Final[dict[str, str]] = {
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_linear_layer.alpha": "alpha",
    ".lora.alpha": "alpha",
    ".alpha": "alpha",
}
_SIGNS: Final = tuple(suffix for suffix, kind in _SUFFIXES.items() if kind != "alpha")

_OTHER_METHODS: Final[dict[str, str]] = {
    "lora_mid": "LoCon with a Tucker core",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "LyCORIS's DoRA",
    "oft_": "OFT",
    "on_input": "IA3",
    "diff": "a full difference",
}

_LEAVES: Final[dict[str, str]] = {
    "self_attn_q_proj": "self_attn.q_proj",
    "self_attn_k_proj": "self_attn.k_proj",
    "self_attn_v_proj": "self_attn.v_proj",
    "self_attn_out_proj": "self_attn.out_proj",
    "mlp_fc1": "mlp.fc1",
    "mlp_fc2": "mlp.fc2",
}
"""The modules of one layer of CLIP's text model, as kohya flattens them."""

_FLAT: Final = re.compile(rf"text_model_encoder_layers_(\d{{1,4}})_({'|'.join(_LEAVES)})")
_DOTTED: Final = re.compile(
    rf"(?:text_model\.)?encoder\.layers\.\d{{1,4}}\."
    rf"(?:{'|'.join(map(re.escape, _LEAVES.values()))})|text_projection"
)


def is_kohya(opened: Opened) -> bool:
    """Whether a tensor is named as kohya or older diffusers name factors."""
    return any(
        key.endswith(_SIGNS) or (key.startswith("lora_") and _part(key)[0] != "")
        for key in opened.tensors
    )


def read_kohya(opened: Opened, options: Options) -> Adapter:
    """Read the adapter of one CLIP text encoder.

    Raises:
        AdapterError: A factor lacks its partner, or ranks disagree.
        UnsupportedError: A tensor belongs to another part of the pipeline or another method.
    """
    del options  # the file holds everything
    modules: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in sorted(opened.tensors.items()):
        part, module, kind = _resolve(key, opened.source)
        factors = modules.setdefault((part, module), {})
        if kind in factors:
            msg = f"adapter {opened.source!r} holds two tensors for {kind} of {module!r}"
            raise AdapterError(msg, hint="Two adapters were mixed: save one of them alone.")
        factors[kind] = tensor
    if len({part for part, _ in modules}) > 1:
        msg = f"adapter {opened.source!r} holds updates of two text encoders"
        raise UnsupportedError(msg, hint="Save the updates of each encoder in a file of its own.")
    low_rank = [_update(module, factors, opened.source) for (_, module), factors in modules.items()]
    return finish(opened, "kohya", low_rank)


def _part(key: str) -> tuple[str, str | None]:
    """Return how `key` begins, and the part of the pipeline that this means."""
    prefix = next((each for each in _PARTS if key.startswith(each)), "")
    return prefix, _PARTS.get(prefix)


def _resolve(key: str, source: str) -> tuple[str, str, str]:
    """Return the part, the module's path and the kind of a tensor."""
    prefix, part = _part(key)
    if part is None:
        what = f"of {prefix.rstrip('_.')!r}" if prefix else "of no known part"
        msg = f"tensor {key!r} of adapter {source!r} is {what}; only text encoders are read"
        raise UnsupportedError(
            msg, hint="Save the updates of the text encoder (lora_te_…) in a file of their own."
        )
    suffix = next((each for each in _SUFFIXES if key.endswith(each)), None)
    if suffix is None:
        name = next((text for sign, text in _OTHER_METHODS.items() if sign in key), "unknown")
        msg = f"tensor {key!r} of adapter {source!r} is of another kind than LoRA: {name}"
        raise UnsupportedError(
            msg, hint="Merge it with the tool that trained it, and export the merged checkpoint."
        )
    path = key.removeprefix(prefix).removesuffix(suffix)
    if prefix.endswith("."):
        module = path if _DOTTED.fullmatch(path) else None
    elif match := _FLAT.fullmatch(path):
        module = f"text_model.encoder.layers.{match[1]}.{_LEAVES[match[2]]}"
    else:
        module = path if path == "text_projection" else None
    if module is None:
        msg = f"tensor {key!r} of adapter {source!r} does not belong to CLIP's text model"
        raise UnsupportedError(msg, hint="Only CLIP text encoders are read from this format.")
    return part, module, _SUFFIXES[suffix]


def _update(module: str, factors: Mapping[str, Tensor], source: str) -> LowRank:
    a, b = require_pair(
        {name: factors[name] for name in ("down", "up") if name in factors},
        ("down", "up"),
        module,
        source,
    )
    rank = require_rank(a.shape[0], b.shape[1], module, source)
    alpha = scalar(factors["alpha"], source) if "alpha" in factors else float(rank)
    return LowRank(module, a, b, alpha / rank)
