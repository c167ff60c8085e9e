"""Distance biases that a model rounds to bfloat16, traced in float32 to the same numbers.

    c = 65537 · x,   x rounded = c - (c - x)

splits x (Veltkamp 1968) and keeps its 24 - 16 = 8 leading bits, those of bfloat16. Of whole
numbers and their products with slopes that bfloat16 holds it is the same to the last bit as a
cast, which few runtimes have (compared with torch up to position 200,000).
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["float32_alibi"]

_MODULES: Final = ("transformers.models.falcon.modeling_falcon",)
"""Where a ``build_alibi_tensor`` multiplies in bfloat16 whatever the model's dtype is."""

_BUILDER: Final = "build_alibi_tensor"
_SPLITTER: Final = 65537.0


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Return `x`, float32, rounded to what bfloat16 holds."""
    scaled = x * _SPLITTER
    return scaled - (scaled - x)


@contextlib.contextmanager
def float32_alibi() -> Iterator[None]:
    """Let the models of the table compute their biases in float32, until the block ends."""
    before: list[tuple[Any, Any]] = []

    def replaced(original: Any) -> Any:
        def build(mask: torch.Tensor, heads: int, dtype: torch.dtype) -> torch.Tensor:
            if dtype == torch.bfloat16:
                result: torch.Tensor = original(mask, heads, dtype)
                return result
            with _disable_current_modes():  # a constant, not part of the trace
                one = torch.ones((1, 2), dtype=torch.int64)  # at position 1, the bias is the slope
                values = original(one, heads, torch.float32)[:, 0, 1].tolist()
            slopes = torch.tensor(values, dtype=torch.float32)
            batch, length = mask.shape
            positions = ((mask.cumsum(dim=-1) - 1) * mask)[:, None, :]
            biases = _rounded(slopes[:, None] * _rounded(positions.to(torch.float32)))
            return biases.reshape(batch * heads, 1, length).to(dtype)

        return build

    for name in _MODULES:
        module = importlib.import_module(name)
        original = getattr(module, _BUILDER)
        before.append((module, original))
        setattr(module, _BUILDER, replaced(original))
    try:
        yield
    finally:
        for module, original in before:
            setattr(module, _BUILDER, original)
