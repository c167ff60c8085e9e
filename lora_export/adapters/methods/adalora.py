"""AdaLoRA: a product of rank r whose singular values are trained (arXiv 2303.10512, section 3.1).

    ΔW = s · B (E ∘ A)        A [r, in · kernel], E [r, 1], B [out, r]
    s  = lora_alpha / (init_r + 1e-5)

What training pruned is left out of the file: ``rank_pattern`` lists what was kept of ``init_r``
ranks, and PEFT goes on dividing by ``init_r``. A module of which nothing was kept is not changed.
The update is one of LoRA, with E folded into A. As in PEFT 0.21, ``peft/tuners/adalora/layer.py``
and ``model.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.adapters.canonical import LowRank
from lora_export.adapters.delta import read_finite
from lora_export.adapters.methods.interface import Method
from lora_export.core.dtypes import DTYPES
from lora_export.core.shown_value import shown
from lora_export.core.tensors import ComposedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.adapters.methods.interface import AdaptedModule

__all__ = ["ADALORA"]

_NAMES: Final = ("lora_A", "lora_B", "lora_E")
_RANK_COUNT: Final = "ranknum"
"""A tensor of older files, which PEFT does not read."""

_ADDED: Final = np.float32(1e-5)
_INIT_R: Final = 12
_ALPHA: Final = 8
_MATRIX: Final = 2


def _read(module: AdaptedModule) -> Iterator[LowRank]:
    a, b, e = module.require(*_NAMES)
    matrices = len(a.shape) == len(b.shape) == _MATRIX
    if not matrices or a.shape[0] != b.shape[1] or e.shape != (a.shape[0], 1):
        raise module.shapes_error(*_NAMES)
    rank = a.shape[0]
    kept, first = _kept(module), module.setting("init_r", _INIT_R)
    if (first if kept is None else kept) != rank:
        said = f"init_r: {shown(first)}" if kept is None else f"that {kept} of {first} are kept"
        raise module.error(f"its tensors have rank {rank}, its config says {said}")
    if rank == 0:
        return
    alpha = module.setting("lora_alpha", _ALPHA)
    scale = float(alpha) if alpha > 0 else float(rank)
    folded = ComposedTensor(
        a.name, DTYPES["float32"], a.shape, (a, e), lambda: read_finite(a) * read_finite(e)
    )
    yield LowRank(module.path, folded, b, scale / float(np.float32(first) + _ADDED), flat=True)


def _kept(module: AdaptedModule) -> int | None:
    """Return how many ranks ``rank_pattern`` keeps of the module; None where it does not say."""
    pattern: Any = module.config.get("rank_pattern") or {}
    own = pattern.get(f"{module.path}.lora_E")
    if own is None:
        named = (key for key in pattern if key.startswith(f"{module.path}.lora_E"))
        own = pattern.get(next(named, ""))
    return None if own is None else sum(map(bool, own))


ADALORA: Final = Method("AdaLoRA", frozenset({*_NAMES, _RANK_COUNT}), _read)
