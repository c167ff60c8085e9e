"""Attention masks that trace to three nodes instead of thirty.

transformers looks the padding up per index pair, which becomes GatherND over an index grid. The
same mask is ``pattern & padding[:, None, None, :]``, where the pattern (causal, sliding window) is
the model's own function of two aranges; an all-true pattern disappears.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from lora_export.graph.trace.transformers_private import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    bidirectional_mask_function,
    causal_mask_function,
    eager_mask,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["plain_masks"]


def additive_mask(  # noqa: PLR0917  (the interface is transformers')
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., torch.Tensor] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **rest: Any,
) -> torch.Tensor:
    """Return the additive mask: 0 where a query may look, the smallest finite number elsewhere.

    Shape ``[batch or 1, 1, q_length or 1, kv_length]``; it broadcasts over what it does not use.
    """
    if use_vmap or kv_offset != 0:
        mask: torch.Tensor = eager_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            dtype=dtype,
            use_vmap=use_vmap,
            device=device,
            **rest,
        )
        return mask
    allowed: torch.Tensor | None = None
    if mask_function is not bidirectional_mask_function:
        queries = torch.arange(q_length, device=device)
        queries = (
            queries[None, None, :, None] + q_offset  # of each row
            if isinstance(q_offset, torch.Tensor)
            else (queries + q_offset)[None, None, :, None]
        )
        keys = (torch.arange(kv_length, device=device) + kv_offset)[None, None, None, :]
        zero = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=device)
        allowed = mask_function(zero, zero, queries, keys)
    if attention_mask is not None:
        padding = attention_mask[:, None, None, :].to(torch.bool)
        allowed = padding if allowed is None else allowed & padding
    if allowed is None:
        return torch.zeros((1, 1, 1, 1), dtype=dtype, device=device)
    zero_bias = torch.zeros((), dtype=dtype, device=device)
    return torch.where(allowed, zero_bias, torch.finfo(dtype).min)


@contextlib.contextmanager
def plain_masks() -> Iterator[None]:
    """Use `additive_mask` for models with eager attention, until the block ends."""
    table = ALL_MASK_ATTENTION_FUNCTIONS
    before = table["eager"]
    table["eager"] = additive_mask
    try:
        yield
    finally:
        table["eager"] = before
