"""The states that a sentence embedding is pooled from, as an output of the graph.

A graph that pools has one output, ``sentence_embedding``. Runtimes that pool by themselves want
``last_hidden_state``. It is found by the shape of the graph: the first value that everything has
to pass through which follows from a weight of the model. Dense layers behind the pooling have
weights too; they are left out by their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx
from onnx import helper

from lora_export.core.errors import UnsupportedError
from lora_export.graph.foreign.rewire import rename_values
from lora_export.graph.forms.node_slices import nodes_behind
from lora_export.graph.nodes.weight_uses import inputs_of
from lora_export.graph.spec.onnx_file import parse_onnx

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["STATES", "with_token_states"]

STATES: Final = "last_hidden_state"
_EMBEDDING: Final = "sentence_embedding"
_HINT: Final = "Export again with --task feature-extraction, whose output the states are."


def with_token_states(onnx_bytes: bytes, *, dense: Sequence[str] = ()) -> bytes:
    """Return a graph of sentence embeddings that returns the token states first.

    Args:
        onnx_bytes: A graph whose output is ``sentence_embedding``; one that has
            ``last_hidden_state`` already is returned as it is.
        dense: Names of the modules with weights that follow the pooling (``2_Dense``).

    Raises:
        ExportDirectoryError: The graph cannot be parsed.
        UnsupportedError: There is no such value, or it has another shape.
    """
    model = parse_onnx(onnx_bytes)
    graph = model.graph
    outputs = {each.name: each for each in graph.output}
    if STATES in outputs:
        return onnx_bytes
    if _EMBEDDING not in outputs:
        msg = f"the graph returns {sorted(outputs)}, neither {STATES!r} nor {_EMBEDDING!r}"
        raise UnsupportedError(msg, hint=_HINT)
    states = _states(graph, tuple(f"{name}." for name in dense))
    kind = _type_of(model, states, outputs[_EMBEDDING])
    axes = [each.dim_param or each.dim_value or None for each in kind.shape.dim]
    if len(axes) != 3 or not isinstance(axes[2], int):  # noqa: PLR2004  (batch, sequence, width)
        msg = f"what the pooling reads has the axes {axes}; expected [batch, sequence, a width]"
        raise UnsupportedError(msg, hint=_HINT)
    rename_values(graph, {states: STATES})
    sizes: list[str | int | None] = ["batch", "sequence", axes[2]]
    value = helper.make_tensor_value_info(STATES, kind.elem_type, sizes)
    others = list(graph.output)
    del graph.output[:]
    graph.output.extend([value, *others])
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _states(graph: onnx.GraphProto, dense: tuple[str, ...]) -> str:
    """Return the name of the value that the pooling reads."""
    weights = {
        each.name
        for each in graph.initializer
        if each.data_location == onnx.TensorProto.EXTERNAL and not each.name.startswith(dense)
    }
    nodes = nodes_behind(graph, [_EMBEDDING])
    readers = [at for at, node in enumerate(nodes) if weights.intersection(inputs_of(node))]
    if not readers:
        raise UnsupportedError("the graph reads no weights in other files", hint=_HINT)
    last_read = {name: at for at, node in enumerate(nodes) for name in inputs_of(node)}
    derived: set[str] = set()
    for at, node in enumerate(nodes):
        if weights.intersection(inputs_of(node)) or derived.intersection(inputs_of(node)):
            derived.update(node.output)
        waiting = {name for name in derived if last_read.get(name, -1) > at}
        if at >= readers[-1] and len(waiting) == 1:
            return waiting.pop()
    msg = "no single value of the graph holds what the pooling reads"
    raise UnsupportedError(msg, hint=_HINT)


def _type_of(model: onnx.ModelProto, name: str, like: onnx.ValueInfoProto) -> onnx.TypeProto.Tensor:
    """Return type and shape of a value, as ONNX's shape inference finds them."""
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in inferred.graph.value_info:
        if value.name == name:
            found: onnx.TypeProto.Tensor = value.type.tensor_type
            return found
    msg = f"the shape of {name!r}, which {like.name!r} is pooled from, cannot be found"
    raise UnsupportedError(msg, hint=_HINT)
