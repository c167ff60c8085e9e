"""Keys and values of past positions as inputs and outputs of a graph.

A decoder's layer keeps keys and values ``[batch, heads, length, width]`` and appends those of the
new positions. The graph takes them as tensors and returns them longer; the model sees a cache of
transformers that holds them. Every layer's cache is a full one, those of layers with a sliding
window too: the window is in the attention mask then, and one graph serves any length of the past,
none included.

How many layers keep something, and in which shape, is asked from the model: it is run once on fake
tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.cache_utils import DynamicCache, DynamicLayer

from lora_export.base.errors import UnsupportedError
from lora_export.graph.signature import CachedLayer, past_name, present_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["cache_layers", "cache_of", "tensors_of"]

_PROBE_LENGTH = 2


def cache_layers(model: Any) -> tuple[CachedLayer, ...]:
    """Return what each layer of `model` keeps, in the order of the layers.

    Args:
        model: A decoder with fake parameters.

    Raises:
        UnsupportedError: Its layers keep something else than keys and values.
    """
    cache = DynamicCache()
    ids = torch.ones((1, _PROBE_LENGTH), dtype=torch.int64)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            model(input_ids=ids, attention_mask=ids, past_key_values=cache, use_cache=True)
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        msg = f"{type(model).__name__} has no cache of keys and values: {text}"
        raise UnsupportedError(msg, hint="Export it without a cache: --no-cache.") from error
    found = []
    for index, layer in enumerate(cache.layers):
        if not layer.is_initialized:
            continue
        (_, heads, length, key_width), (_, value_heads, _, value_width) = (
            tuple(layer.keys.shape),
            tuple(layer.values.shape),
        )
        if length != _PROBE_LENGTH or heads != value_heads:
            msg = f"layer {index} of {type(model).__name__} keeps {tuple(layer.keys.shape)}"
            raise UnsupportedError(msg, hint="Export it without a cache: --no-cache.")
        found.append(CachedLayer(index, heads, key_width, value_width))
    if not found:
        msg = f"{type(model).__name__} keeps no keys and values"
        raise UnsupportedError(msg, hint="Export it without a cache: --no-cache.")
    return tuple(found)


def cache_of(layers: Sequence[CachedLayer], tensors: Mapping[str, torch.Tensor]) -> DynamicCache:
    """Return a cache that holds `tensors`, inputs of the graph by their names."""
    cache = DynamicCache()
    cache.layers = [DynamicLayer() for _ in range(layers[-1].index + 1)]
    for position, layer in enumerate(layers):
        keys, values = tensors[past_name(position, "key")], tensors[past_name(position, "value")]
        slot = cache.layers[layer.index]
        slot.lazy_initialization(keys, values)
        slot.keys, slot.values = keys, values
    return cache


def tensors_of(layers: Sequence[CachedLayer], cache: DynamicCache) -> dict[str, torch.Tensor]:
    """Return what `cache` holds now, by the names of the graph's outputs."""
    found: dict[str, torch.Tensor] = {}
    for position, layer in enumerate(layers):
        slot = cache.layers[layer.index]
        found |= {
            present_name(position, "key"): slot.keys,
            present_name(position, "value"): slot.values,
        }
    return found
