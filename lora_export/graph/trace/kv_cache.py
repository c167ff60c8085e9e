"""Keys and values of past positions as inputs and outputs of a graph.

A decoder's layer keeps keys and values ``[batch, heads, length, width]`` and appends those of the
new positions. The graph takes them as tensors and returns them longer; the model sees a cache of
transformers that holds them. Every layer's cache is a full one, those of layers with a sliding
window too: the window is in the attention mask then, and one graph serves any length of the past,
none included.

A static cache is a buffer of a fixed length instead, ``[batch, heads, length, width]``, which the
graph returns with the new positions written where ``write_indices`` ``[batch]`` says. What is not
written yet is masked.

How many layers keep something, and in which shape, is asked from the model: it is run once on fake
tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_export.core.errors import UnsupportedError
from lora_export.core.torch_private import FakeTensorMode
from lora_export.graph.spec.signature import WRITE_INDICES, CachedLayer, past_name, present_name
from lora_export.graph.trace.traced_experts import traceable_experts
from lora_export.graph.trace.transformers_private import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["cache_layers", "cache_of", "tensors_of"]

_PROBE_LENGTH = 2
_TENSOR_SCATTER_OPSET = 24
_NO_STATIC_CACHE = {"gpt_neo": "its layers tell from the length of the keys where a query stands"}
"""Why a model has no static cache, by its type."""


def cache_layers(model: Any, length: int | None = None) -> tuple[CachedLayer, ...]:
    """Return the cache of each layer of `model`, in the order of the layers.

    Args:
        model: A decoder with fake parameters.
        length: The positions of a static cache; None for one that grows.

    Raises:
        UnsupportedError: Its layers keep something else than keys and values, or cannot keep them
            in buffers.
    """
    why = _NO_STATIC_CACHE.get(model.config.model_type) if length is not None else None
    if why is not None:
        msg = f"{type(model).__name__} has no static cache: {why}"
        raise UnsupportedError(msg, hint="Leave --cache-length out: the cache then grows.")
    cache = DynamicCache()
    ids = torch.ones((1, _PROBE_LENGTH), dtype=torch.int64)
    try:
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            traceable_experts(),
            torch.no_grad(),
        ):
            model(input_ids=ids, attention_mask=ids, past_key_values=cache, use_cache=True)
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        msg = f"{type(model).__name__} has no cache of keys and values: {text}"
        raise UnsupportedError(msg, hint="Export it without a cache: --no-cache.") from error
    found = []
    for index, layer in enumerate(cache.layers):
        if not layer.is_initialized:
            continue
        (_, heads, seen, key_width), (_, value_heads, _, value_width) = (
            tuple(layer.keys.shape),
            tuple(layer.values.shape),
        )
        if seen != _PROBE_LENGTH or heads != value_heads:
            msg = f"layer {index} of {type(model).__name__} keeps {tuple(layer.keys.shape)}"
            raise UnsupportedError(msg, hint="Export it without a cache: --no-cache.")
        found.append(CachedLayer(index, heads, key_width, value_width, length))
    if not found:
        msg = f"{type(model).__name__} keeps no keys and values"
        raise UnsupportedError(msg, hint="Export it without a cache: --no-cache.")
    return tuple(found)


def cache_of(
    layers: Sequence[CachedLayer], tensors: Mapping[str, torch.Tensor], opset: int
) -> DynamicCache:
    """Return a cache that holds `tensors`, inputs of the graph by their names.

    Args:
        layers: What each layer keeps.
        tensors: The keys and values; for a static cache ``write_indices`` and ``input_ids`` too.
        opset: The opset of the graph, which decides how a static cache is written.
    """
    write = None
    cache = DynamicCache()
    if layers[0].length is not None:
        write = _Writing(tensors[WRITE_INDICES], tensors["input_ids"].shape[1], opset)
        cache = _StaticCache(write.indices)
    for _ in range(layers[-1].index + 1):
        cache.layers.append(DynamicLayer() if write is None else _StaticLayer(write))
    for position, layer in enumerate(layers):
        keys, values = tensors[past_name(position, "key")], tensors[past_name(position, "value")]
        slot = cache.layers[layer.index]
        slot.lazy_initialization(keys, values)
        slot.keys, slot.values = keys, values
    return cache


class _StaticCache(DynamicCache):  # type: ignore[misc]
    """Buffers of a fixed length; the queries of a row begin where it is written."""

    def __init__(self, indices: torch.Tensor) -> None:
        super().__init__()
        self.layers: list[DynamicLayer] = []
        self._indices = indices

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """Return where each row's queries begin, ``[batch, 1, 1, 1]``."""
        del layer_idx
        return self._indices[:, None, None, None]


class _StaticLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer in buffers ``[batch, heads, length, width]``."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, write: _Writing) -> None:
        super().__init__()
        self._write = write

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new positions; return the whole buffers."""
        del args, kwargs
        self.keys = self._write(self.keys, key_states)
        self.values = self._write(self.values, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of the buffers, and where they begin."""
        del query_length
        return self.keys.shape[-2], 0

    def get_seq_length(self) -> Any:
        """Return the first row's past; a model that asks for it takes all rows' to be the same."""
        return self._write.indices[0]


class _Writing:
    """The write of new positions into a buffer: one ONNX node, which a runtime may run in place.

    From opset 24 on it is ``TensorScatter``, before that ``ScatterND`` with the place of each
    vector, ``[batch, heads, new, 3]``, which all layers share.
    """

    def __init__(self, indices: torch.Tensor, new: int, opset: int) -> None:
        self.indices = indices
        self._new, self._opset = new, opset
        self._places: dict[int, torch.Tensor] = {}

    def __call__(self, buffer: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        if self._opset >= _TENSOR_SCATTER_OPSET:
            operator, inputs = "TensorScatter", [buffer, new, self.indices]
            attributes: dict[str, Any] = {"axis": 2, "mode": "linear"}
        else:
            operator, inputs = "ScatterND", [buffer, self._places_for(buffer.shape[1]), new]
            attributes = {}
        return torch.onnx.ops.symbolic(
            operator, inputs, attributes, dtype=buffer.dtype, shape=buffer.shape
        )

    def _places_for(self, heads: int) -> torch.Tensor:
        """Return (row, head, position) of each new vector."""
        if heads not in self._places:
            batch = self.indices.shape[0]
            shape = (batch, heads, self._new)
            rows = torch.arange(batch)[:, None, None].expand(shape)
            columns = torch.arange(heads)[None, :, None].expand(shape)
            positions = (self.indices[:, None] + torch.arange(self._new))[:, None].expand(shape)
            self._places[heads] = torch.stack([rows, columns, positions], dim=-1)
        return self._places[heads]


def tensors_of(layers: Sequence[CachedLayer], cache: DynamicCache) -> dict[str, torch.Tensor]:
    """Return the tensors in `cache`, by the names of the graph's outputs."""
    found: dict[str, torch.Tensor] = {}
    for position, layer in enumerate(layers):
        slot = cache.layers[layer.index]
        found |= {
            present_name(position, "key"): slot.keys,
            present_name(position, "value"): slot.values,
        }
    return found
