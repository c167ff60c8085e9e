"""The cost of an adapter, from a model's parameters alone (the paper's sections 4.1 and 4.2).

A module of shape ``[out, in]`` gets ``r·(out + in)`` trained parameters; for L square ones of width
d that is ``2·L·d·r``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from lora_export.core.dtypes import by_name
from lora_export.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.core.parameters import Parameter

__all__ = ["Cost", "cost_of"]

_MATRIX: Final = 2
_SHOWN: Final = 12


@dataclass(frozen=True)
class Cost:
    """An adapter of rank r on some modules of a model.

    Attributes:
        rank: r.
        modules: How many matrices are adapted.
        base_parameters: The model's parameters.
        base_bytes: What they take in `dtype`.
        trained_parameters: Σ r·(out + in).
        adapter_bytes: What they take in `dtype`.
        dtype: The dtype that both are stored in.
    """

    rank: int
    modules: int
    base_parameters: int
    base_bytes: int
    trained_parameters: int
    adapter_bytes: int
    dtype: str

    @property
    def reduction(self) -> float:
        """The model's parameters over the trained ones."""
        return self.base_parameters / self.trained_parameters


def cost_of(
    parameters: Sequence[Parameter], targets: Sequence[str], *, rank: int, dtype: str
) -> Cost:
    """Return the cost of an adapter of `rank` on `targets`.

    Args:
        parameters: The model's.
        targets: Ends of module names (``q_proj``), as PEFT's ``target_modules``.
        rank: r.
        dtype: What the model and the adapter are stored in.

    Raises:
        UsageError: A target matches no matrix, or the rank is none.
    """
    if rank < 1:
        msg = f"an adapter cannot have the rank {rank}"
        raise UsageError(msg, hint="Give --rank 8, for example.")
    trained = [each for each in parameters if not each.is_buffer]
    matrices = {
        each.name.removesuffix(".weight"): each
        for each in trained
        if len(each.shape) == _MATRIX and each.name.endswith(".weight")
    }
    chosen: dict[str, Parameter] = {}
    for target in targets:
        found = {
            name: each
            for name, each in matrices.items()
            if name == target or name.endswith(f".{target}")
        }
        if not found:
            ends = sorted({re.sub(r".*\.", "", name) for name in matrices})
            msg = f"no matrix of the model is called {target!r}"
            raise UsageError(msg, hint=f"Its matrices: {', '.join(ends[:_SHOWN])}.")
        chosen |= found
    width = by_name(dtype).itemsize_bytes
    count = sum(rank * sum(each.shape) for each in chosen.values())
    total = sum(prod(each.shape) for each in trained)
    return Cost(rank, len(chosen), total, total * width, count, count * width, by_name(dtype).name)
