"""Rotary frequencies that depend on the length of the text, chosen inside the graph.

With n, the largest position + 1, and the config's lengths, by transformers' ``rope_type``:

    longrope   long_factor where n > original_max_position_embeddings, else short_factor
    dynamic    NTK for n where n > max_position_embeddings, else the config's own

transformers writes the frequencies of the text at hand into a buffer of the module, or asks Python
how long it is; neither can be traced. Here they are a value beside the buffer.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_export.graph.trace.transformers_private import ROPE_INIT_FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["choose_frequencies_in_graph"]

_LONG: Final = "longrope"
_DYNAMIC: Final = "dynamic"
_OF_LONG_TEXTS: Final = "frequencies_of_long_texts"


def choose_frequencies_in_graph(model: torch.nn.Module) -> None:
    """Let the rotary embeddings of `model` choose as above; mutates `model`."""
    for module in model.modules():
        kind: Any = getattr(module, "rope_type", None)
        if kind not in (_LONG, _DYNAMIC):
            continue
        if kind == _LONG:
            longer = _limit(module) + 1
            values, _ = ROPE_INIT_FUNCTIONS[_LONG](module.config, None, seq_len=longer)
            module.register_buffer(_OF_LONG_TEXTS, values, persistent=False)
        plain = inspect.unwrap(type(module).forward)
        module.forward = functools.partial(_forward, module, plain)


class _WithFrequencies:
    """A rotary embedding whose frequencies are `inv_freq`."""

    def __init__(self, module: torch.nn.Module, inv_freq: torch.Tensor) -> None:
        self._module = module
        self.inv_freq = inv_freq

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _forward(
    module: Any, plain: Callable[..., Any], x: torch.Tensor, position_ids: torch.Tensor
) -> Any:
    """Return what `plain`, the class's own ``forward``, makes of the chosen frequencies."""
    length = position_ids.max() + 1
    if module.rope_type == _LONG:
        others = getattr(module, _OF_LONG_TEXTS)
    else:
        others, _ = ROPE_INIT_FUNCTIONS[_DYNAMIC](module.config, x.device, seq_len=length)
    chosen = torch.where(length > _limit(module), others, module.inv_freq)
    return plain(_WithFrequencies(module, chosen), x, position_ids)


def _limit(module: Any) -> int:
    """Return the longest text that has the frequencies of `module` as they are."""
    if module.rope_type == _DYNAMIC:
        return int(module.config.max_position_embeddings)
    return int(module.config.rope_parameters["original_max_position_embeddings"])
