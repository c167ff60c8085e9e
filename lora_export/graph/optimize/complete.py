"""The whole graph from one of a few layers: settled, the other layers stamped out, serialized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from lora_export.core.errors import UnsupportedError
from lora_export.graph.optimize.replicate_layers import replicate_layers
from lora_export.graph.optimize.settle import settle

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_export.core.parameters import Parameter
    from lora_export.graph.spec.repeat import Repeat

__all__ = ["complete_graph", "give_places", "joined_parameters"]

_PLACEHOLDER: Final = "weights/base.safetensors"


def complete_graph(
    model: ir.Model, parameters: Sequence[Parameter], repeats: Sequence[Repeat]
) -> tuple[bytes, tuple[Parameter, ...]]:
    """Return the file of the whole graph, its parameters external, and the parameters.

    Args:
        model: A graph that `lora_export.graph.optimize.fold.simplify` made, or one like it whose
            numbers were filled in; mutated, and of no further use.
        parameters: Its parameters, in the model's own layout.
        repeats: The lists of layers of which it has a few.

    Raises:
        NotRepeatingError: Layers of a kind differ.
    """
    settled = replicate_layers(model, settle(model, parameters), repeats)
    give_places(model, settled)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # shapes of values in between: a head may change its width
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized, settled


def joined_parameters(
    encoder: Iterable[Parameter], decoder: Iterable[Parameter]
) -> tuple[Parameter, ...]:
    """Return the parameters of both graphs of a model, sorted; one that both read is one.

    Raises:
        UnsupportedError: They read one in different layouts.
    """
    found: dict[str, Parameter] = {}
    for parameter in (*encoder, *decoder):
        if found.setdefault(parameter.name, parameter) != parameter:
            msg = f"encoder and decoder read {parameter.name!r} in different layouts"
            raise UnsupportedError(msg, hint="docs/models.md lists the families.")
    return tuple(found[name] for name in sorted(found))


def give_places(model: ir.Model, parameters: Iterable[Parameter]) -> None:
    """Give each parameter a place in a file that is yet to be written; mutates `model`."""
    for parameter in parameters:
        value = model.graph.initializers[parameter.name]
        value.const_value = ir.ExternalTensor(
            _PLACEHOLDER,
            0,
            0,
            ir.DataType(parameter.stored_dtype.onnx),
            shape=ir.Shape(parameter.stored_shape),
            name=parameter.name,
        )
