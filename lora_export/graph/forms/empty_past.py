"""A decoder that takes an empty past of any shape.

Before the first token a runtime makes an empty past by a rule of its own. optimum's takes the heads
and the width of the config's attention for that of keys and values, which is wrong where keys and
values have fewer heads, or heads of another width; ONNX Runtime then refuses the past, though it
has no elements. Here the declared sizes become names, and a ``Reshape`` to the right ones follows
each input: it copies nothing, and changes an empty past only.

    past [batch, heads, length, width] → Reshape to [0, heads, -1, width] → what the past was
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lora_export.graph.foreign.rewire import rename_values
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import PAST

__all__ = ["with_any_empty_past"]

_RANK: Final = 4
_SHAPE: Final = ".shape"
_GIVEN: Final = ".given"


def with_any_empty_past(onnx_bytes: bytes) -> bytes:
    """Return a decoder whose past may have any shape while it is empty; same input, same bytes.

    Args:
        onnx_bytes: A graph; one without a past is returned as it is.

    Raises:
        ExportDirectoryError: The graph cannot be parsed.
    """
    model = parse_onnx(onnx_bytes)
    graph = model.graph
    sizes = {each.name: _sizes(each) for each in graph.input if each.name.startswith(PAST)}
    known = {name: found for name, found in sizes.items() if found is not None}
    if not known:
        return onnx_bytes
    rename_values(graph, {name: f"{name}{_GIVEN}" for name in known})
    added: list[onnx.NodeProto] = []
    for value in graph.input:
        name = value.name.removesuffix(_GIVEN)
        if name not in known:
            continue
        value.name = name
        heads, width = known[name]
        shape = np.array([0, heads, -1, width], np.int64)
        graph.initializer.append(numpy_helper.from_array(shape, f"{name}{_SHAPE}"))
        reads = [name, f"{name}{_SHAPE}"]
        added.append(helper.make_node("Reshape", reads, [f"{name}{_GIVEN}"], f"{name}{_GIVEN}"))
        for at, axis in ((1, "past_heads"), (3, "past_width")):
            value.type.tensor_type.shape.dim[at].Clear()
            value.type.tensor_type.shape.dim[at].dim_param = axis
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*added, *rest])
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, int] | None:
    """Return heads and width of a past ``[batch, heads, length, width]``; None of another one."""
    axes = value.type.tensor_type.shape.dim
    if len(axes) != _RANK or axes[2].HasField("dim_value"):
        return None
    heads, width = axes[1].dim_value, axes[3].dim_value
    return (heads, width) if heads and width else None
