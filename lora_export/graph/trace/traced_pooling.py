"""Pooling in a traced graph: from token states to a sentence embedding.

With states ``h [batch, sequence, hidden]`` and a mask ``m [batch, sequence]`` of zeros and ones::

    cls                   h₁
    max                   max over t of h_t where m_t = 1
    mean                  Σ m_t h_t / max(Σ m_t, 1e-9)
    mean_sqrt_len_tokens  Σ m_t h_t / √max(Σ m_t, 1e-9)
    weightedmean          Σ t m_t h_t / max(Σ t m_t, 1e-9)     t from 1
    lasttoken             h_t of the last t with m_t = 1

Everything is computed in float32: a sum of float16 states may overflow, and 1e-9 is 0 in float16.
States of padding are replaced, not multiplied by 0, so that what is infinite there does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from lora_export.weights.sentence_head import SentenceHead

__all__ = ["add_dense_layers", "sentence_embedding"]

_LEAST_COUNT: Final = 1e-9
_LEAST_LENGTH: Final = 1e-12
_HIDDEN: Final = -1e9


def add_dense_layers(model: torch.nn.Module, head: SentenceHead, dtype: torch.dtype) -> None:
    """Give `model` the dense layers of `head`, as submodules of their names."""
    for layer in head.dense:
        module = torch.nn.Module()
        module.linear = torch.nn.Linear(layer.inputs, layer.outputs, bias=layer.bias, dtype=dtype)
        model.add_module(layer.name, module)


def sentence_embedding(
    model: Any, head: SentenceHead, states: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the sentence embeddings ``[batch, width]``, in the dtype of `states`.

    Args:
        model: Holds the dense layers.
        head: What follows the states.
        states: ``[batch, sequence, hidden]``.
        mask: ``[batch, sequence]``, int64.
    """
    wide = states.float()
    pooled = torch.cat([_pool(mode, wide, mask) for mode in head.modes], dim=1).to(states.dtype)
    for layer in head.dense:
        linear = model.get_submodule(layer.name).linear
        pooled = getattr(torch.nn, layer.activation)()(linear(pooled))
    if head.normalize:
        pooled = torch.nn.functional.normalize(pooled.float(), dim=1, eps=_LEAST_LENGTH)
    return pooled.to(states.dtype)


def _pool(mode: str, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    counted = mask.unsqueeze(-1) > 0  # [batch, sequence, 1]
    if mode == "cls":
        return states[:, 0]
    if mode == "max":
        return torch.where(counted, states, _HIDDEN).amax(dim=1)
    weights = mask.float()
    if mode in {"weightedmean", "lasttoken"}:
        weights = weights * torch.arange(1, mask.shape[1] + 1, dtype=torch.float32)
    shown = torch.where(counted, states, 0.0)
    if mode == "lasttoken":
        last = weights.argmax(dim=1)
        return shown.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
    total = (shown * weights.unsqueeze(-1)).sum(dim=1)
    count = weights.sum(dim=1, keepdim=True).clamp(min=_LEAST_COUNT)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)
