"""A canonical adapter as the inputs of a swappable graph: names and layout that Olive uses too.

    <module>.lora_A.weight   [in, r]    Aᵀ
    <module>.lora_B.weight   [r, out]   s·Bᵀ
    <parameter>              as it is   what the adapter carries whole

The same layout is what TensorRT-Edge-LLM makes of a PEFT adapter for its engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.adapters.delta import read_finite
from lora_export.core.dtypes import cast
from lora_export.core.errors import UnsupportedError
from lora_export.core.tensors import MemoryTensor

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.adapters.canonical import Adapter, LowRank
    from lora_export.core.dtypes import DType

__all__ = ["pack", "require_linear"]

_MATRIX = 2


def pack(adapter: Adapter, dtype: DType) -> dict[str, MemoryTensor]:
    """Return the tensors of `adapter` in that layout, by name, computed in float32.

    Raises:
        UnsupportedError: Magnitudes, additions, replaced rows or convolutions: no such input.
        AdapterError: A tensor holds NaN or infinity.
        InputError: `dtype` cannot hold a value.
    """
    _refuse_rest(adapter)
    found: dict[str, MemoryTensor] = {}

    def put(name: str, values: npt.NDArray[Any]) -> None:
        stored = cast(np.ascontiguousarray(values), dtype, name=name)
        found[name] = MemoryTensor(name, dtype, stored)

    for update in adapter.low_rank:
        _require_matrix(adapter, update)
        put(f"{update.module}.lora_A.weight", read_finite(update.a).T)
        put(f"{update.module}.lora_B.weight", read_finite(update.b).T * np.float32(update.scale))
    for saved in adapter.saved:
        put(saved.parameter, read_finite(saved.tensor))
    return found


def require_linear(adapter: Adapter) -> None:
    """Require that `adapter` changes linear layers only, the one thing that Edge-LLM applies.

    Raises:
        UnsupportedError: It has a saved parameter or an embedding, which would be left out.
    """
    others = [saved.parameter for saved in adapter.saved]
    others += [update.parameter for update in adapter.low_rank if update.embedding]
    if others:
        msg = (
            f"adapter {adapter.source!r} changes {others[0]!r}, "
            "and TensorRT-Edge-LLM applies updates of linear layers only"
        )
        raise UnsupportedError(msg, hint="Export a merged graph, or leave it out: --drop PATTERN")


def _refuse_rest(adapter: Adapter) -> None:
    kinds = {
        "a magnitude (DoRA)": [u.parameter for u in adapter.low_rank if u.magnitude is not None],
        "an addition": [each.parameter for each in adapter.added],
        "an update of a bare parameter": [u.parameter for u in adapter.low_rank if u.name],
        "replaced rows": [each.parameter for each in adapter.rows],
    }
    for kind, parameters in kinds.items():
        if parameters:
            msg = f"adapter {adapter.source!r} has {kind} for {parameters[0]!r}: no input holds it"
            raise UnsupportedError(msg, hint="It depends on the base: export a merged graph.")


def _require_matrix(adapter: Adapter, update: LowRank) -> None:
    if len(update.a.shape) != _MATRIX:
        msg = f"adapter {adapter.source!r} updates the convolution {update.module!r}"
        raise UnsupportedError(msg, hint="Export a merged graph: only matrices can be inputs.")
