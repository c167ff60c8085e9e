"""BEFT: a trained vector added to a module's bias.

    b = b0 + beft_bias         beft_bias [1, out]

A module without a bias has no merge, in PEFT neither. As in PEFT 0.21,
``peft/tuners/beft/layer.py``.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

from lora_export.adapters.canonical import Added
from lora_export.adapters.methods.interface import Method
from lora_export.core.tensors import ComposedTensor, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.adapters.methods.interface import AdaptedModule

__all__ = ["BEFT"]

_BIAS: Final = "beft_bias"


def _read(module: AdaptedModule) -> Iterator[Added]:
    (bias,) = module.require(_BIAS)
    size = prod(bias.shape)
    if bias.shape != (1, size):
        raise module.error(f"{_BIAS} is {list(bias.shape)}, one row was expected")
    line = ComposedTensor(
        bias.name, bias.dtype, (size,), (bias,), lambda: read_all(bias).reshape(-1)
    )
    yield Added(f"{module.path}.bias", line, 1.0)


BEFT: Final = Method("BEFT", frozenset({_BIAS}), _read)
