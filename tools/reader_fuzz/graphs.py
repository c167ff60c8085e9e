"""Readers of ONNX graphs: those of exports, and those of other exporters."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.dtypes import DTYPES
from lora_export.core.tensors import MemoryTensor, read_all
from lora_export.graph.foreign.adopt import adopt, require_same_base
from lora_export.graph.foreign.match import match_graph
from lora_export.graph.foreign.open_graph import open_graph
from lora_export.graph.spec.onnx_file import read_onnx
from lora_export.graph.spec.signature import own_cache, read_signature
from tools.reader_fuzz.mutate_bytes import mutate_bytes
from tools.reader_fuzz.mutate_proto import mutate_proto
from tools.reader_fuzz.reader import Reader, Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tools.reader_fuzz.reader import Mutator

__all__ = ["GRAPHS"]

_FILE: Final = "model.onnx"
_DATA: Final = "model.onnx.data"
_WIRE: Final[tuple[Mutator, ...]] = (mutate_proto, mutate_proto, mutate_bytes)
_SHAPES: Final = {"a.weight": (16, 32), "a.bias": (16,), "b.weight": (16, 16), "e.weight": (20, 32)}


def _arrays() -> dict[str, Any]:
    return {
        name: np.linspace(-1 - index, 1, prod(shape), dtype=np.float32).reshape(shape)
        for index, (name, shape) in enumerate(_SHAPES.items())
    }


def _graph(*, external: bool) -> tuple[bytes, bytes]:
    """Return a graph of four weights, one in a subgraph, and the file of its data."""
    arrays = _arrays()
    arrays["a.weight"] = np.ascontiguousarray(arrays["a.weight"].T)
    inner = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["then.out"])],
        "then",
        [],
        [helper.make_tensor_value_info("then.out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(arrays["b.weight"], "inner.weight")],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["h", "b.weight"], ["else.out"])],
        "else",
        [],
        [helper.make_tensor_value_info("else.out", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Gather", ["e.weight", "ids"], ["x"], name="/model/e/Gather"),
        helper.make_node("MatMul", ["x", "a.weight"], ["y"], name="/model/a/MatMul"),
        helper.make_node("Add", ["y", "a.bias"], ["h"]),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(arrays["b.weight"])),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "kt"], ["m"]),
        helper.make_node("If", ["flag"], ["z"], then_branch=inner, else_branch=other),
        helper.make_node("Identity", ["a.bias"], ["copy"]),
    ]
    data = b""
    initializers = []
    for name, each in arrays.items():
        tensor = numpy_helper.from_array(each, name)
        if external:
            raw = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": _DATA, "offset": len(data), "length": len(raw)}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            data += raw
        initializers.append(tensor)
    graph = helper.make_graph(
        nodes,
        "main",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            helper.make_tensor_value_info(
                "past_key_values.decoder.0", TensorProto.FLOAT, ["batch", 2, "past", 4]
            ),
        ],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", "sequence", 16])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.graph.node[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'a']")
    return model.SerializeToString(), data


def _foreign(_fixed: Path) -> Target:
    base = {name: MemoryTensor(name, DTYPES["float32"], each) for name, each in _arrays().items()}
    inside, _ = _graph(external=False)
    outside, data = _graph(external=True)
    return Target(
        ({_FILE: inside}, {_FILE: outside, _DATA: data}),
        {_FILE: _WIRE, _DATA: (mutate_bytes,)},
        partial(_read_foreign, base),
    )


def _read_foreign(base: Mapping[str, MemoryTensor], folder: Path) -> None:
    graph = open_graph(folder / _FILE, {prod(each.shape) for each in base.values()})
    matching = match_graph(graph, base, "model.")
    require_same_base(graph, matching, "base")
    adopted = adopt(graph, matching, prefix="model.", model_class="Model")
    for tensor in adopted.kept.values():
        read_all(tensor)


def _own(_fixed: Path) -> Target:
    graph, data = _graph(external=True)
    return Target(({_FILE: graph, _DATA: data},), {_FILE: _WIRE}, _read_own)


def _read_own(folder: Path) -> None:
    signature = read_signature(read_onnx(folder / _FILE))
    own_cache(signature.inputs)


GRAPHS: Final[Mapping[str, Reader]] = {
    "onnx-foreign": Reader(_foreign, slowness=2),
    "onnx": Reader(_own),
}
"""The readers of graphs."""
