"""Sentence embeddings of the reference: sentence-transformers' formulae in NumPy and float64.

Written apart from what is traced (`lora_export.graph.trace.traced_pooling` has the formulae), to
check it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import to_float32
from lora_export.core.tensors import read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from lora_export.core.tensors import Tensor
    from lora_export.weights.sentence_head import SentenceHead

    Wide = npt.NDArray[np.float64]

__all__ = ["sentence_embedding"]

_erf: Final = np.vectorize(math.erf, otypes=[np.float64])
_ACTIVATIONS: Final[dict[str, Callable[[Wide], Wide]]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def sentence_embedding(
    head: SentenceHead,
    tensors: Mapping[str, Tensor],
    states: npt.NDArray[Any],
    mask: npt.NDArray[Any],
) -> npt.NDArray[np.float32]:
    """Return the embeddings ``[batch, width]``, one sentence after the other.

    Args:
        head: What follows the states.
        tensors: Holds the parameters of dense layers.
        states: ``[batch, sequence, hidden]``.
        mask: ``[batch, sequence]``, zeros and ones.
    """
    rows = [
        np.concatenate([_pool(mode, own, kept != 0) for mode in head.modes])
        for own, kept in zip(states.astype(np.float64), mask, strict=True)
    ]
    result: Wide = np.stack(rows)
    for layer in head.dense:
        result = result @ _values(tensors, f"{layer.name}.linear.weight").T
        if layer.bias:
            result = result + _values(tensors, f"{layer.name}.linear.bias")
        result = _ACTIVATIONS[layer.activation](result)
    if head.normalize:
        result = result / np.maximum(np.linalg.norm(result, axis=1, keepdims=True), 1e-12)
    return result.astype(np.float32)


def _pool(mode: str, states: Wide, kept: npt.NDArray[np.bool_]) -> Wide:
    """Return the pooled states of one sentence; ``[sequence, hidden]`` becomes ``[hidden]``."""
    if mode == "cls":
        return np.asarray(states[0])
    counted = states[kept]
    if not len(counted):
        return np.full(states.shape[1], -1e9 if mode == "max" else 0.0)
    if mode == "max":
        return np.asarray(counted.max(axis=0))
    if mode == "lasttoken":
        return np.asarray(counted[-1])
    if mode == "weightedmean":
        return np.asarray(np.average(counted, axis=0, weights=1 + np.flatnonzero(kept)))
    length = len(counted)
    return np.asarray(counted.sum(axis=0) / (length if mode == "mean" else math.sqrt(length)))


def _values(tensors: Mapping[str, Tensor], name: str) -> Wide:
    return to_float32(read_all(tensors[name])).astype(np.float64)
