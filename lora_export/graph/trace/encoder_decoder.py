"""Encoder and decoder as a graph each, so that a decoder step repeats no encoder work.

    encoder:  input_ids, attention_mask (or input_features)
              → last_hidden_state, present.{i}.encoder.key|value
    decoder:  input_ids, encoder_attention_mask, past_key_values.{i}.decoder.key|value,
              past_key_values.{i}.encoder.key|value
              → logits, present.{i}.decoder.key|value

The keys and values that a layer's cross-attention makes of the encoder's output do not change
while text is written: the encoder's graph computes them once, by the decoder's own parameters, and
the decoder only reads them. One decoder graph serves the beginning (a past of length 0) and every
step, without a branch. Names are those of optimum; what the model's layers keep is asked from it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from lora_export.core.errors import UnsupportedError
from lora_export.core.torch_private import FakeTensorMode
from lora_export.graph.spec.signature import PAST, PRESENT, Input, Output, Signature, given_inputs
from lora_export.graph.trace.overflow import AssumeOverflow
from lora_export.graph.trace.transformers_private import (
    BaseModelOutput,
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.graph.spec.signature import Axis
    from lora_export.graph.spec.tasks import Task

__all__ = ["Component", "component_of"]

Component = Literal["encoder", "decoder"]

_MASK: Final = "encoder_attention_mask"
_WHATS: Final[tuple[Literal["key", "value"], ...]] = ("key", "value")
_PROBE_LENGTH: Final = 2


@dataclass(frozen=True)
class _Layers:
    """The cache of every layer of the decoder, ``[batch, heads, length, width]``, twice each.

    Attributes:
        indices: The number of each layer in the model; layers may have been left out.
        heads: Heads of keys and values.
        width: Their last axis.
        encoder_length: Positions of the encoder's output: a name, or a size that is fixed.
    """

    indices: tuple[int, ...]
    heads: int
    width: int
    encoder_length: Axis

    def names(self, start: str, part: Component) -> list[str]:
        return [f"{start}{i}.{part}.{what}" for i in range(len(self.indices)) for what in _WHATS]

    def axes(self, length: Axis) -> tuple[Axis, ...]:
        return ("batch", self.heads, length, self.width)


def component_of(
    model: Any, task: Task, component: Component, *, dtype: str
) -> tuple[Signature, torch.nn.Module]:
    """Return the interface of one of the two graphs, and the module that computes it.

    Args:
        model: An encoder-decoder with fake parameters.
        task: The task's row.
        component: Which of the two.
        dtype: The dtype of the parameters.

    Raises:
        UnsupportedError: The model is not an encoder-decoder as described above.
    """
    missing = [
        name for name in task.inputs if name not in inspect.signature(model.forward).parameters
    ]
    if missing:
        msg = f"{type(model).__name__} takes no {missing[0]!r}, which {task.name} needs"
        raise UnsupportedError(msg, hint="Choose another task with --task.")
    given = given_inputs(model.config, task.inputs, dtype=dtype)
    layers = _layers_of(model, given)
    masked = "attention_mask" in task.inputs
    if component == "encoder":
        return _encoder_signature(given, layers), _Encoder(model, layers, masked=masked)
    signature = _decoder_signature(layers, dtype, masked=masked)
    return signature, _Decoder(model, layers, signature.output_names, masked=masked)


def _encoder_signature(given: Sequence[Input], layers: _Layers) -> Signature:
    length = "sequence" if isinstance(layers.encoder_length, str) else layers.encoder_length
    outputs = [Output("last_hidden_state", ("batch", length))]
    axes = layers.axes(length)
    outputs += [Output(name, axes) for name in layers.names(PRESENT, "encoder")]
    return Signature(tuple(given), tuple(outputs))


def _decoder_signature(layers: _Layers, dtype: str, *, masked: bool) -> Signature:
    inputs = [Input("input_ids", "int64", ("batch", "sequence"))]
    if masked:
        inputs.append(Input(_MASK, "int64", ("batch", layers.encoder_length)))
    parts: tuple[tuple[Component, Axis], ...] = (
        ("decoder", "past_sequence"),
        ("encoder", layers.encoder_length),
    )
    for part, length in parts:
        axes = layers.axes(length)
        inputs += [Input(name, dtype, axes) for name in layers.names(PAST, part)]
    outputs = [Output("logits", ("batch", "sequence"))]
    axes = layers.axes("total_sequence")
    outputs += [Output(name, axes) for name in layers.names(PRESENT, "decoder")]
    return Signature(tuple(inputs), tuple(outputs))


def _layers_of(model: Any, given: Sequence[Input]) -> _Layers:
    """Run `model` once on fake tensors, and see what its cache then holds."""
    named = {axis for each in given for axis in each.axes if isinstance(axis, str)}
    examples = {
        each.name: torch.ones(
            [_PROBE_LENGTH if isinstance(axis, str) else axis for axis in each.axes],
            dtype=getattr(torch, each.dtype),
        )
        for each in given
    }
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids = torch.ones((_PROBE_LENGTH, _PROBE_LENGTH), dtype=torch.int64)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), AssumeOverflow(), torch.no_grad():
            model(**examples, decoder_input_ids=ids, past_key_values=cache, use_cache=True)
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        msg = f"{type(model).__name__} cannot be split into encoder and decoder: {text}"
        raise UnsupportedError(msg, hint="docs/models.md lists the families.") from error
    indices, others = (
        tuple(index for index, layer in enumerate(each.layers) if layer.is_initialized)
        for each in (cache.self_attention_cache, cache.cross_attention_cache)
    )
    own = [cache.self_attention_cache.layers[index] for index in indices]
    cross = [cache.cross_attention_cache.layers[index] for index in others]
    shapes = {
        tuple(tensor.shape[at] for at in (1, 3))
        for layer in (*own, *cross)
        for tensor in (layer.keys, layer.values)
    }
    lengths = {layer.keys.shape[2] for layer in cross}
    if indices != others or len(shapes) != 1 or len(lengths) != 1:
        msg = f"the layers of {type(model).__name__} keep keys and values of different shapes"
        raise UnsupportedError(msg, hint="docs/models.md lists the families.")
    heads, width = shapes.pop()
    length: Axis = "encoder_sequence" if "sequence" in named else int(lengths.pop())
    return _Layers(indices, heads, width, length)


def _empty_cache(indices: Sequence[int]) -> EncoderDecoderCache:
    slots = range(indices[-1] + 1)
    return EncoderDecoderCache(*(_cache([DynamicLayer() for _ in slots]) for _ in range(2)))


def _cache(layers: list[DynamicLayer]) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = layers
    return cache


class _Encoder(torch.nn.Module):
    """The encoder, and what the decoder's cross-attentions make of its output.

    The decoder is run on one token and its cache is read; everything in it that these values do
    not depend on is not part of the graph.
    """

    def __init__(self, model: Any, layers: _Layers, *, masked: bool) -> None:
        super().__init__()
        self.model = model
        self._layers = layers
        self._masked = masked

    def forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        hidden = self.model.get_encoder()(**inputs, return_dict=True).last_hidden_state
        cache = _empty_cache(self._layers.indices)
        ids = torch.zeros((hidden.shape[0], 1), dtype=torch.int64)
        masks = {_MASK: inputs["attention_mask"]} if self._masked else {}
        self.model.get_decoder()(
            input_ids=ids,
            encoder_hidden_states=hidden,
            past_key_values=cache,
            use_cache=True,
            **masks,
        )
        return (hidden, *_held(cache.cross_attention_cache))


class _Decoder(torch.nn.Module):
    """The decoder with its head, on a cache that holds what the encoder's graph returned."""

    def __init__(
        self, model: Any, layers: _Layers, outputs: Sequence[str], *, masked: bool
    ) -> None:
        super().__init__()
        self.model = model
        self._layers = layers
        self._outputs = outputs
        self._masked = masked

    def forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        cache = _empty_cache(self._layers.indices)
        parts: tuple[tuple[Component, DynamicCache], ...] = (
            ("decoder", cache.self_attention_cache),
            ("encoder", cache.cross_attention_cache),
        )
        for part, kept in parts:
            values = [inputs[name] for name in self._layers.names(PAST, part)]
            for index, keys, value in zip(
                self._layers.indices, values[::2], values[1::2], strict=True
            ):
                layer = kept.layers[index]
                layer.lazy_initialization(keys, value)
                layer.keys, layer.values = keys, value
        cache.is_updated = dict.fromkeys(self._layers.indices, True)
        batch, _, length, _ = inputs[self._layers.names(PAST, "encoder")[0]].shape
        width = self.model.config.hidden_size
        # only its length is looked at: the keys and values of it are in the cache
        hidden = torch.zeros((batch, length, width), dtype=self.model.dtype)
        masks = {"attention_mask": inputs[_MASK]} if self._masked else {}
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            decoder_input_ids=inputs["input_ids"],
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **masks,
        )
        return (output.logits, *_held(cache.self_attention_cache))


def _held(cache: DynamicCache) -> list[torch.Tensor]:
    """Return the keys and values of each layer, in order."""
    return [
        tensor
        for layer in cache.layers
        if layer.is_initialized
        for tensor in (layer.keys, layer.values)
    ]
