"""The original checkpoint in place of the quantized one that adapters were trained on.

    values, config, tokenizer   of the original
    the adapters' own base      the quantized one: names and records are compared with it

The two have to be one model. Shapes are compared of every tensor, values of the first rows:

    a weight that is quantized       ‖W − Q‖ ≤ 0.7 ‖W‖; two models of one shape differ by √2
    one that is not (norms, biases)  ‖W − Q‖ ≤ 0.01 ‖W‖

The second finds methods that move scales from weights into norms (AWQ, SmoothQuant): updates that
were trained between scaled layers mean something else in the original.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.core.dtypes import Float32Array, to_float32
from lora_export.core.errors import CheckpointError, UsageError
from lora_export.core.tensors import bytes_of
from lora_export.weights.fingerprint import TIED_NAMES

if TYPE_CHECKING:
    from lora_export.core.tensors import Tensor
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["require_original"]

_QUANTIZED_LIMIT: Final = 0.7
_PLAIN_LIMIT: Final = 0.01
_ELEMENTS: Final = 1 << 16


def require_original(original: Checkpoint, quantized: Checkpoint) -> None:
    """Require that one checkpoint is the other one before it was quantized, as far as samples tell.

    Args:
        original: The checkpoint in floats.
        quantized: The one that adapters were trained on.

    Raises:
        UsageError: The second is not quantized, or the first is.
        CheckpointError: They are not of one model; the first tensor that differs is named.
    """
    if quantized.quantized is None or original.quantized is not None:
        wrong = "--base is not quantized" if quantized.quantized is None else "it is quantized too"
        msg = f"{original.source!r} cannot stand in for the base {quantized.source!r}: {wrong}"
        raise UsageError(
            msg,
            hint="--base is the quantized checkpoint that the adapter was trained on, "
            "--base-override the original one in float.",
        )
    for name, tensor in quantized.tensors.items():
        other = original.tensors.get(name)
        if other is None and name.endswith(TIED_NAMES):
            continue
        found = None if other is None else other.shape
        if other is None or found != tensor.shape:
            msg = f"{original.source!r} has {name!r} as {_shown(found)}, the base "
            msg += f"{quantized.source!r} as {list(tensor.shape)}"
            raise CheckpointError(msg, hint="They are not one model; check --base-override.")
        is_quantized = name in quantized.quantized.weights
        _require_near(name, other, tensor, original.source, is_quantized=is_quantized)


def _require_near(
    name: str, original: Tensor, quantized: Tensor, source: str, *, is_quantized: bool
) -> None:
    """Require that the first values of two tensors differ by no more than quantization makes."""
    if not (original.dtype.floating and quantized.dtype.floating):
        return
    before, after = _start(original), _start(quantized)
    length = float(np.linalg.norm(before))
    difference = float(np.linalg.norm(before - after))
    if difference <= (_QUANTIZED_LIMIT if is_quantized else _PLAIN_LIMIT) * length:
        return
    share = f"{difference / length:.2g} of its length" if length else "from zero"
    msg = f"{name!r} of {source!r} differs by {share} from the base's"
    if is_quantized:
        raise CheckpointError(msg, hint="It is another model; check --base-override.")
    raise CheckpointError(
        f"{msg}, which does not quantize it",
        hint="It is another model, or a method that moved scales there (AWQ): adapters that were "
        "trained on its result do not fit the original. Leave out --base-override.",
    )


def _start(tensor: Tensor) -> Float32Array:
    """Return the first values of a tensor."""
    values = np.empty(min(_ELEMENTS, prod(tensor.shape)), tensor.dtype.numpy)
    tensor.read_into(bytes_of(values), 0)
    return to_float32(values)


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
