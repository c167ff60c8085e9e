"""Mixtures of experts that trace to matrix products: every expert sees every token.

transformers loops over the experts that a batch happens to hit, which cannot be traced, or gathers
the weights of each token's experts, ``tokens × k`` copies of them. Here all experts E compute all
tokens T, and the shares of those that the router did not choose are zero:

    y[t] = Σ_e s[t, e] · down_e(act(gate_e(x[t])) · up_e(x[t])),   s[t, e] = 0 if e was not chosen

Nothing depends on the routing but values, the weights are read where they lie, and the memory is
that of ``T × E`` rows; the price is ``E / k`` times the arithmetic.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from lora_export.graph.trace.transformers_private import apply_gate, experts_functions

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["every_expert", "traceable_experts"]


def every_expert(
    module: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Return the weighted outputs of the chosen experts for each token: ``[tokens, width]``.

    Args:
        module: The experts; weights ``[E, out, in]``, or ``[E, in, out]`` where transposed.
        hidden_states: ``[tokens, width]``.
        top_k_index: The experts of each token, ``[tokens, k]``, each at most once.
        top_k_weights: Their shares, ``[tokens, k]``.
    """
    x: torch.Tensor = hidden_states.unsqueeze(0)  # (1, T, width)
    x = _linear(module, "gate_up_proj" if module.has_gate else "up_proj", x)
    x = apply_gate(module, x) if module.has_gate else module.act_fn(x)
    x = _linear(module, "down_proj", x)  # (E, T, width)
    if module.has_post_expert_norm:
        x = module.post_expert_norm(x)
    experts, tokens, _ = x.shape
    shares = torch.zeros((tokens, experts), dtype=x.dtype, device=x.device)
    shares = shares.scatter(1, top_k_index, top_k_weights.to(x.dtype)).t().unsqueeze(-1)
    none = torch.zeros((), dtype=x.dtype, device=x.device)
    weighted = torch.where(shares == 0, none, x * shares)  # an overflow times 0 would be NaN
    return weighted.sum(dim=0)


def _linear(module: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """Return ``x W_eᵀ + b_e`` for every expert: ``[1 or E, T, in]`` to ``[E, T, out]``."""
    weight: torch.Tensor = getattr(module, name)
    # (E, out, in) @ (E, in, T): a weight is read as it is stored
    y = x @ weight if module.is_transposed else (weight @ x.transpose(1, 2)).transpose(1, 2)
    if module.has_bias:
        y = y + getattr(module, f"{name}_bias").unsqueeze(1)
    return y


@contextlib.contextmanager
def traceable_experts() -> Iterator[None]:
    """Use `every_expert` for models with eager experts, until the block ends.

    Under a transformers that has no table of such functions, experts are traced as they are.
    """
    table = experts_functions()
    if table is None:
        yield
        return
    table["eager"] = every_expert
    try:
        yield
    finally:
        del table["eager"]
