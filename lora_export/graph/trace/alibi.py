"""ALiBi biases that a model rounds to bfloat16, traced in float32 with the same values.

    c = 65537 · x,   x rounded = c - (c - x)

splits x (Veltkamp 1968) and keeps its 24 - 16 = 8 leading bits, those of bfloat16. Of whole
numbers and their products with slopes that bfloat16 holds it is the same to the last bit as a
cast, which few runtimes have (compared with torch up to position 200,000).

Falcon's model puts the biases into the mask that its attentions are given, and its eager attention
adds them once more; with torch's own attention, which is the default, they count once. So they do
here.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_export.core.torch_private import disable_modes
from lora_export.graph.trace.transformers_private import falcon_model

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["float32_alibi"]

_BUILDER: Final = "build_alibi_tensor"
_ATTENTION: Final = "FalconAttention"
_SPLITTER: Final = 65537.0


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Return `x`, float32, rounded to what bfloat16 holds."""
    scaled = x * _SPLITTER
    return scaled - (scaled - x)


class _InTheMask:
    """Biases that an attention has to add nothing for: its mask holds them."""

    def view(self, *sizes: int) -> torch.Tensor:
        """Return a scalar 0, whatever the sizes."""
        del sizes
        return torch.zeros(())


def _counted_once(forward: Any) -> Any:
    """Return the ``forward`` of an attention that leaves out biases which its mask holds."""

    @functools.wraps(forward)
    def attend(
        self: Any, hidden_states: Any, *, alibi: Any, attention_mask: Any, **rest: Any
    ) -> Any:
        held = attention_mask is not None and attention_mask.shape[1] == self.num_heads
        if alibi is not None and held:  # by head: a mask alone is the same for all
            alibi = _InTheMask()
        return forward(self, hidden_states, alibi=alibi, attention_mask=attention_mask, **rest)

    return attend


@contextlib.contextmanager
def float32_alibi() -> Iterator[None]:
    """Let the models of the table compute their biases in float32 and add them once.

    Until the block ends.
    """
    before: list[tuple[Any, str, Any]] = []

    def replaced(original: Any) -> Any:
        def build(mask: torch.Tensor, heads: int, dtype: torch.dtype) -> torch.Tensor:
            if dtype == torch.bfloat16:
                result: torch.Tensor = original(mask, heads, dtype)
                return result
            with disable_modes():  # a constant, not part of the trace
                one = torch.ones((1, 2), dtype=torch.int64)  # at position 1, the bias is the slope
                values = original(one, heads, torch.float32)[:, 0, 1].tolist()
            slopes = torch.tensor(values, dtype=torch.float32)
            batch, length = mask.shape
            positions = ((mask.cumsum(dim=-1) - 1) * mask)[:, None, :]
            biases = _rounded(slopes[:, None] * _rounded(positions.to(torch.float32)))
            return biases.reshape(batch * heads, 1, length).to(dtype)

        return build

    module = falcon_model()
    attention = getattr(module, _ATTENTION)
    for holder, name, change in (
        (module, _BUILDER, replaced),
        (attention, "forward", _counted_once),
    ):
        original = getattr(holder, name)
        before.append((holder, name, original))
        setattr(holder, name, change(original))
    try:
        yield
    finally:
        for holder, name, original in before:
            setattr(holder, name, original)
