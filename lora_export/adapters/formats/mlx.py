"""mlx-lm's adapters: ``adapters.safetensors`` beside ``adapter_config.json``.

Keys are ``<module>.lora_a`` ``[in, r]`` and ``<module>.lora_b`` ``[r, out]``, the transposes of A
and B, with the base's own module names; DoRA adds ``<module>.m`` ``[out]``. For an embedding
``lora_a`` is ``[vocabulary, r]``. The scale is recorded as it is applied:
``lora_parameters.scale`` (https://github.com/ml-explore/mlx-lm, ``mlx_lm/LORA.md``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lora_export.adapters.canonical import LowRank
from lora_export.adapters.formats.open_archive import (
    finish,
    finite_number,
    is_embedding,
    require_pair,
    require_rank,
    transposed,
)
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.shown_value import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.formats.open_archive import Opened, Options
    from lora_export.core.tensors import Tensor

__all__ = ["is_mlx", "read_mlx"]

_FACTOR: Final = re.compile(r"(?P<module>.+)\.(?P<kind>lora_[ab]|m)")
_KINDS: Final = ("lora", "dora")


def is_mlx(opened: Opened) -> bool:
    """Whether a tensor is named ``<module>.lora_a`` or ``<module>.lora_b``."""
    return opened.weights.suffix != ".gguf" and any(
        key.endswith((".lora_a", ".lora_b")) for key in opened.tensors
    )


def read_mlx(opened: Opened, options: Options) -> Adapter:
    """Read an adapter that mlx-lm saved.

    Raises:
        AdapterError: The config is missing or says no scale, or tensors do not fit together.
        UnsupportedError: A full fine-tune, experts, or tensors of another kind.
    """
    del options  # the files hold everything
    scale, rank = _settings(opened)
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(opened.tensors.items()):
        match = _FACTOR.fullmatch(key)
        if match is None:
            msg = f"tensor {key!r} of adapter {opened.source!r} is not a tensor that mlx-lm writes"
            raise UnsupportedError(
                msg, hint="Fuse it with mlx_lm.fuse, and export the fused checkpoint."
            )
        modules.setdefault(match["module"], {})[match["kind"]] = tensor
    low_rank = [
        _update(module, factors, scale, rank, opened.source) for module, factors in modules.items()
    ]
    return finish(opened, "mlx", low_rank, base_name=opened.config.get("model"))


def _settings(opened: Opened) -> tuple[float, object]:
    """Return the scale, and the rank as far as it is recorded."""
    kind = opened.config.get("fine_tune_type", "lora")
    if kind not in _KINDS:
        msg = f"adapter {opened.source!r} is of the kind {shown(kind, 40)}, not lora or dora"
        raise UnsupportedError(
            msg, hint="Fuse it with mlx_lm.fuse, and export the fused checkpoint."
        )
    parameters = opened.config.get("lora_parameters")
    if not isinstance(parameters, dict) or "scale" not in parameters:
        msg = f"adapter {opened.source!r} has no adapter_config.json with lora_parameters.scale"
        raise AdapterError(
            msg, hint="Copy adapter_config.json, which mlx-lm writes beside adapters.safetensors."
        )
    if "alpha" in parameters:
        msg = f"adapter {opened.source!r} records alpha beside scale"
        raise AdapterError(
            msg,
            hint="Before 2025, mlx-lm scaled by scale·alpha/rank, since then by scale alone: set "
            "lora_parameters.scale to the intended product, and remove alpha.",
        )
    scale = finite_number(parameters["scale"], "the scale", opened.source)
    return scale, parameters.get("rank")


def _update(
    module: str, factors: Mapping[str, Tensor], scale: float, rank: object, source: str
) -> LowRank:
    pair = {name: tensor for name, tensor in factors.items() if name != "m"}
    a, b = require_pair(pair, ("lora_a", "lora_b"), module, source)  # (in, r), (r, out)
    found = require_rank(a.shape[1], b.shape[0], module, source)
    if rank is not None and rank != found:
        msg = (
            f"module {module!r} of adapter {source!r} has rank {found}, "
            f"but its config says {shown(rank, 40)}"
        )
        raise AdapterError(msg, hint="Config and tensors are not of the same adapter.")
    magnitude = factors.get("m")
    embedding = is_embedding(module)
    if magnitude is not None:
        if embedding:
            msg = f"module {module!r} of adapter {source!r} is an embedding under DoRA"
            raise UnsupportedError(
                msg, hint="mlx-lm scales its rows by token: fuse it with mlx_lm.fuse."
            )
        if magnitude.shape != (b.shape[1],) or not magnitude.dtype.floating:
            msg = f"tensor {magnitude.name!r} of adapter {source!r} has {list(magnitude.shape)}"
            raise AdapterError(msg, hint=f"Expected one number per output: [{b.shape[1]}].")
    return LowRank(module, transposed(a), transposed(b), scale, embedding, magnitude)
