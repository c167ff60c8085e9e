"""The paper's own format: ``loralib`` 0.1 (https://github.com/microsoft/LoRA).

``lora.lora_state_dict(model)`` writes ``<module>.lora_A`` ``[r, in]`` and ``<module>.lora_B``
``[out, r]`` without ``.weight``, and with ``bias="all"`` or ``"lora_only"`` the trained biases.
Neither r nor alpha is in the file: r is taken from the shapes, alpha comes from the user, and
``s = alpha / r``. For an embedding A is ``[r, vocabulary]`` and B ``[width, r]``.

``MergedLinear`` (GPT-2's ``c_attn``) adapts n of the L equal blocks of its output, those that
``enable_lora`` marks. A is ``[r·n, in]``, B ``[out/L·n, r]``, and block g of the update is
``B_g A_g`` with A and B cut into n parts. That is one ordinary update of rank r·n, whose B
``[out, r·n]`` holds each ``B_g`` in the rows of its block and the columns of its part.

In a full checkpoint (``model.state_dict()``) nothing says what was trained. The matrices of the
adapted modules are left to the base: whether they hold W0 or, saved after ``eval()``, W0 + s·B A,
is unknown, and the base's own are right in both cases. Everything else that is floating-point
(heads, biases, norms) replaces the base's, which changes nothing where it was frozen. A checkpoint
that was merged and then stripped of its factors holds no LoRA keys, and is not an adapter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import LowRank, Saved
from lora_export.adapters.formats.open_archive import (
    derived,
    finish,
    given_alpha,
    is_embedding,
    require_pair,
)
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.tensors import read_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.formats.open_archive import Opened, Options
    from lora_export.core.tensors import Tensor

__all__ = ["is_loralib", "read_loralib"]

_FACTOR: Final = re.compile(r"(?P<module>.+)\.(?P<kind>lora_[AB])")
_BLOCKS_LIMIT: Final = 64


def is_loralib(opened: Opened) -> bool:
    """Whether a tensor has the name of a factor: ``<module>.lora_A``, without ``.weight``."""
    return any(_FACTOR.fullmatch(key) for key in opened.tensors)


def read_loralib(opened: Opened, options: Options) -> Adapter:
    """Read an adapter or a full checkpoint that loralib's layers were saved in.

    Raises:
        AdapterError: A factor lacks its partner, shapes disagree, or alpha was not given.
        UnsupportedError: A convolution, or tensors of another method.
        UsageError: ``enable_lora`` is needed and absent, or fits no module.
    """
    alpha = given_alpha(options.alpha, opened.source)
    if alpha is None:
        msg = f"adapter {opened.source!r} is loralib's, which does not record alpha"
        raise AdapterError(msg, hint="Give the lora_alpha that it was trained with: --alpha 16")
    factors, others = _sort(opened.tensors)
    low_rank = [
        _update(module, pair, alpha, options.enable_lora, opened.source)
        for module, pair in sorted(factors.items())
    ]
    _require_used(low_rank, factors, options.enable_lora, opened.source)
    saved, repeated = _sort_others(others, factors, opened.source)
    return finish(opened, "loralib", low_rank, saved=saved, repeated=repeated)


def _sort(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    factors: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in sorted(tensors.items()):
        match = _FACTOR.fullmatch(key)
        if match:
            factors.setdefault(match["module"], {})[match["kind"]] = tensor
        else:
            others[key] = tensor
    return factors, others


def _update(
    module: str,
    pair: Mapping[str, Tensor],
    alpha: float,
    enable_lora: tuple[bool, ...] | None,
    source: str,
) -> LowRank:
    """Return the update of one module; s is ``alpha / r`` with r the columns of the stored B."""
    a, b = require_pair(pair, ("lora_A", "lora_B"), module, source)
    r = b.shape[1]
    parts, rest = divmod(a.shape[0], r)
    if rest:
        msg = (
            f"module {module!r} of adapter {source!r}: A {list(a.shape)} and B {list(b.shape)} "
            "do not share a rank"
        )
        raise AdapterError(msg, hint="The adapter is damaged: save or copy it again.")
    if parts > 1 or (enable_lora is not None and sum(enable_lora) == 1):
        b = _spread(module, b, parts, enable_lora, source)
    return LowRank(module, a, b, alpha / r, is_embedding(module))


def _spread(
    module: str, b: Tensor, parts: int, enable_lora: tuple[bool, ...] | None, source: str
) -> Tensor:
    """Return B ``[out, r·n]`` of an ordinary update, from a MergedLinear's ``[out/L·n, r]``."""
    if enable_lora is None:
        msg = (
            f"module {module!r} of adapter {source!r} is a MergedLinear with {parts} adapted "
            "blocks; the file does not record which"
        )
        raise UsageError(
            msg,
            hint="Pass its enable_lora; for q and v of three blocks: --enable-lora true,false,true",
        )
    if sum(enable_lora) != parts or len(enable_lora) > _BLOCKS_LIMIT:
        text = ",".join(str(each).lower() for each in enable_lora[:_BLOCKS_LIMIT])
        msg = (
            f"module {module!r} of adapter {source!r} has {parts} adapted blocks, "
            f"but --enable-lora {text} marks {sum(enable_lora)}"
        )
        raise UsageError(msg, hint="Give the enable_lora that the adapter was trained with.")
    rows, r = b.shape
    width, rest = divmod(rows, parts)
    if rest:
        msg = f"{b.name!r} of adapter {source!r} has {rows} rows, which {parts} blocks do not share"
        raise AdapterError(msg, hint="The adapter is damaged: save or copy it again.")
    stored = read_all(b).reshape(parts, width, r)
    blocks = np.zeros((len(enable_lora), width, parts, r), b.dtype.numpy)
    enabled = [index for index, marked in enumerate(enable_lora) if marked]
    for part, block in enumerate(enabled):
        blocks[block, :, part] = stored[part]
    return derived(b, blocks.reshape(len(enable_lora) * width, parts * r))  # (out, r·n)


def _require_used(
    low_rank: list[LowRank],
    factors: Mapping[str, Mapping[str, Tensor]],
    enable_lora: tuple[bool, ...] | None,
    source: str,
) -> None:
    """Require that ``--enable-lora``, where it was given, was of use to some module."""
    if enable_lora is not None and all(
        update.b is factors[update.module]["lora_B"] for update in low_rank
    ):
        msg = f"--enable-lora is given, but adapter {source!r} has no MergedLinear"
        raise UsageError(msg, hint="Leave it out.")


def _sort_others(
    others: Mapping[str, Tensor], factors: Mapping[str, object], source: str
) -> tuple[list[Saved], list[str]]:
    """Sort what is not a factor into whole parameters, and what is left to the base."""
    saved: list[Saved] = []
    repeated: list[str] = []
    for key, tensor in others.items():
        module, _, leaf = key.rpartition(".")
        if ".lora_" in f".{key}":
            msg = f"tensor {key!r} of adapter {source!r} is not a tensor that loralib writes"
            raise UnsupportedError(msg, hint="If PEFT wrote it, adapter_config.json is missing.")
        if leaf == "weight" and module.removesuffix(".conv") in factors and module not in factors:
            msg = f"module {module!r} of adapter {source!r} is a convolution of loralib"
            raise UnsupportedError(
                msg, hint="Merge it with loralib (model.eval()), and export the merged checkpoint."
            )
        if (leaf == "weight" and module in factors) or not tensor.dtype.floating:
            repeated.append(key)  # the base's own: left to the base
        else:
            saved.append(Saved(key, tensor, in_place=True))
    return saved, repeated
