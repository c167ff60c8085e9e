"""The inputs and outputs of a graph, as a value: names, dtypes and axes.

An axis is a name where its size is the caller's (``batch``, ``sequence``), a number where the
model's config fixes it. `signature_of` derives the value from a task, a config and what the model's
``forward`` accepts; tracing, folding and naming follow it. `read_signature` finds it again in an
ONNX file, so that whoever feeds a graph needs nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import UnsupportedError
from lora_export.ondevice.graph_runner import Axis, Input
from lora_export.ondevice.judge.decoding import PAST, PRESENT, WRITE_INDICES

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import onnx

    from lora_export.graph.spec.tasks import Task

__all__ = [
    "PAST",
    "PRESENT",
    "WRITE_INDICES",
    "Axis",
    "CachedLayer",
    "Choices",
    "Input",
    "Output",
    "Signature",
    "given_inputs",
    "own_cache",
    "past_name",
    "present_name",
    "read_signature",
    "signature_of",
]

_TEXT: Final = ("batch", "sequence")
_PARAMETERS: Final = "parameters"
"""In `_INPUTS`: the dtype of the model's parameters."""

_INPUTS: Final[dict[str, tuple[str, tuple[Axis, ...]]]] = {
    "input_ids": ("int64", _TEXT),
    "attention_mask": ("int64", _TEXT),
    "token_type_ids": ("int64", _TEXT),
    "position_ids": ("int64", _TEXT),
    WRITE_INDICES: ("int64", ("batch",)),
    "pixel_values": (_PARAMETERS, ("batch", "channels", "height", "width")),
    "input_features": (_PARAMETERS, ("batch", "mel_bins", "frames")),
}
"""Inputs by their name in transformers: dtype and axes."""

_NEVER_GIVEN: Final = ("bbox", "xpath_tags_seq", "input_shape_ids", "type_vocab_sizes")
"""Arguments of ``forward``, or settings, of models that read more than text at every token.

Without it transformers assumes zeros, so that a graph would run, and answer another question:
LayoutLM's boxes, MarkupLM's paths, RoCBert's shapes, and TAPAS' rows and columns.
"""

_CONFIG_AXES: Final[dict[str, tuple[str, int, int]]] = {
    "channels": ("num_channels", 0, 1),
    "height": ("image_size", 0, 1),
    "width": ("image_size", 1, 1),
    "mel_bins": ("num_mel_bins", 0, 1),
    "frames": ("max_source_positions", 0, 2),  # Whisper's convolutions halve them
}
"""Axes that a config fixes: the setting, the place in it where it is a list, and a factor."""


_CACHE_AXES: Final = 4


@dataclass(frozen=True)
class Output:
    """One output.

    Attributes:
        name: Its name.
        axes: Its leading axes; those behind them have the size that tracing finds.
    """

    name: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Signature:
    """The interface of a graph, in order; the first output is the task's."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs' names, in order."""
        return tuple(each.name for each in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs' names, in order."""
        return tuple(each.name for each in self.outputs)


@dataclass(frozen=True)
class Choices:
    """The user's choices for the interface of a decoder; other tasks have none.

    Attributes:
        cache: Whether keys and values of past positions are inputs and outputs.
        logits: Whether those of all positions are returned, or of the last one only.
        cache_length: The positions of a static cache; None for one that grows.
    """

    cache: bool = True
    logits: Literal["all", "last"] = "all"
    cache_length: int | None = None


def past_name(position: int, what: Literal["key", "value"]) -> str:
    """Return the name of the input that holds the keys or values of a layer."""
    return f"{PAST}{position}.{what}"


def present_name(position: int, what: Literal["key", "value"]) -> str:
    """Return the name of the output that holds the keys or values of a layer."""
    return f"{PRESENT}{position}.{what}"


@dataclass(frozen=True)
class CachedLayer:
    """The cache of one decoder layer: keys and values ``[batch, heads, length, width]``.

    Attributes:
        index: The layer's place in the model's cache.
        heads: Heads of keys and values.
        key_width: The last axis of the keys.
        value_width: The last axis of the values.
        length: The positions that a static cache has; None for one that grows.
    """

    index: int
    heads: int
    key_width: int
    value_width: int
    length: int | None = None

    def inputs(self, position: int, dtype: str) -> tuple[Input, Input]:
        """Return the inputs of the layer that is called `position` in the graph."""
        axes = ("batch", self.heads, self.length or "past_sequence")
        return (
            Input(past_name(position, "key"), dtype, (*axes, self.key_width)),
            Input(past_name(position, "value"), dtype, (*axes, self.value_width)),
        )

    def outputs(self, position: int) -> tuple[Output, Output]:
        """Return the outputs of the layer that is called `position` in the graph."""
        axes = ("batch", self.heads, self.length or "total_sequence")
        return (
            Output(present_name(position, "key"), (*axes, self.key_width)),
            Output(present_name(position, "value"), (*axes, self.value_width)),
        )


def signature_of(
    config: Any,
    task: Task,
    accepted: Collection[str],
    *,
    dtype: str,
    logits: Literal["all", "last"] = "all",
    cache: Sequence[CachedLayer] = (),
) -> Signature:
    """Return the interface that a model gets for a task.

    Args:
        config: The model's config in transformers, its defaults filled in.
        task: The task's row: which inputs are wanted, which outputs are returned.
        accepted: What the model's ``forward`` takes.
        dtype: The dtype of the parameters.
        logits: Whether a decoder returns those of all positions, or of the last one only.
        cache: What each layer keeps; ``attention_mask`` then is as long as past and new positions,
            or as a static cache.

    Raises:
        UnsupportedError: The model does not take what the task needs.
    """
    missing = [name for name in task.inputs if name not in accepted]
    if missing:
        msg = f"the model {config.model_type!r} takes no {missing[0]!r}, which {task.name} needs"
        raise UnsupportedError(msg, hint="Choose another task with --task.")
    if "input_ids" in accepted and "input_ids" not in task.inputs:
        msg = f"the model {config.model_type!r} also reads text, which {task.name} does not provide"
        raise UnsupportedError(msg, hint="Export the part that reads images, as a checkpoint.")
    more = [name for name in _NEVER_GIVEN if name in accepted or hasattr(config, name)]
    if more:
        msg = f"the model {config.model_type!r} reads {more[0]!r} too, which no task provides"
        raise UnsupportedError(msg, hint="Export it elsewhere, and give that graph with --graph.")
    names = [*task.inputs]
    if "token_type_ids" in accepted and (getattr(config, "type_vocab_size", None) or 0) > 1:
        names.append("token_type_ids")
    if task.causal and "position_ids" in accepted:
        names.append("position_ids")
    total: Axis | None = (cache[0].length or "total_sequence") if cache else None
    if isinstance(total, int):
        names.append(WRITE_INDICES)
    inputs = given_inputs(config, names, dtype=dtype, total=total)
    outputs = [Output(name, task.output_axes) for name in task.outputs]
    if logits == "last":
        outputs = [Output(task.output, ("batch", 1))]
    for position, layer in enumerate(cache):
        inputs += layer.inputs(position, dtype)
        outputs += layer.outputs(position)
    return Signature(tuple(inputs), tuple(outputs))


def given_inputs(
    config: Any, names: Sequence[str], *, dtype: str, total: Axis | None = None
) -> list[Input]:
    """Return the inputs called `names`, their sizes from `config` where it fixes them.

    Args:
        config: The model's config in transformers.
        names: Arguments of its ``forward``.
        dtype: The dtype of the parameters.
        total: The length of ``attention_mask`` where there is a cache: that of past and new
            positions, or of a static cache.
    """
    inputs = []
    for name in names:
        kind, axes = _INPUTS[name]
        if total is not None and name == "attention_mask":
            axes = ("batch", total)
        sizes = tuple(_size(config, axis) for axis in axes)
        inputs.append(Input(name, dtype if kind == _PARAMETERS else kind, sizes))
    return inputs


def _size(config: Any, axis: Axis) -> Axis:
    """Return the size of an axis that the config fixes, or else the axis."""
    if isinstance(axis, int) or axis not in _CONFIG_AXES:
        return axis
    setting, place, factor = _CONFIG_AXES[axis]
    value = getattr(getattr(config, "vision_config", config), setting, None)
    if isinstance(value, (list, tuple)):
        value = value[place]
    return value * factor if isinstance(value, int) else axis


def own_cache(inputs: Sequence[Input]) -> dict[str, tuple[int, int, str]]:
    """Return heads, width and dtype of what the decoder of a pair keeps of its own text.

    The dtype is NumPy's; of bfloat16, which NumPy does not have, it is float32.

    Args:
        inputs: The decoder's; its cache is ``[batch, heads, past_sequence, width]``.

    Raises:
        UnsupportedError: A cache has other axes.
    """
    found: dict[str, tuple[int, int, str]] = {}
    for each in inputs:
        if each.name.startswith(PAST) and ".decoder." in each.name:
            sizes = [axis for axis in each.axes[1::2] if isinstance(axis, int)]
            if len(each.axes) != _CACHE_AXES or len(sizes) != _CACHE_AXES // 2:
                msg = f"the graph's input {each.name!r} has the axes {list(each.axes)}"
                hint = "A cache is [batch, heads, past_sequence, width]: export it again."
                raise UnsupportedError(msg, hint=hint)
            heads, width = sizes
            dtype = "float32" if each.dtype == "bfloat16" else each.dtype
            found[each.name] = (heads, width, dtype)
    return found


def read_signature(model: onnx.ModelProto) -> Signature:
    """Return the interface of a graph, as its ONNX file states it; initializers are not inputs.

    Raises:
        UnsupportedError: An input is of a type that no array here has (texts, sequences).
    """
    own = {initializer.name for initializer in model.graph.initializer}
    return Signature(
        tuple(
            Input(value.name, _dtype(value), _axes(value))
            for value in model.graph.input
            if value.name not in own
        ),
        tuple(Output(value.name, _axes(value)) for value in model.graph.output),
    )


def _dtype(value: onnx.ValueInfoProto) -> str:
    for row in DTYPES.values():
        if row.onnx == value.type.tensor_type.elem_type:
            return row.name
    msg = f"the graph's input {value.name!r} has an unsupported type"
    raise UnsupportedError(msg, hint="Inputs are arrays of numbers or booleans.")


def _axes(value: onnx.ValueInfoProto) -> tuple[Axis, ...]:
    return tuple(
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param
        for axis in value.type.tensor_type.shape.dim
    )
