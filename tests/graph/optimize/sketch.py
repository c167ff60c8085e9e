"""Small graphs, written node by node, and what a rewrite makes of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxruntime

from lora_export.graph.optimize.rewrite import rewrite

__all__ = ["Sketch", "check", "floats", "integers", "run"]


def floats(array):
    return ir.tensor(np.asarray(array, np.float32))


def integers(array):
    return ir.tensor(np.asarray(array, np.int64))


class Sketch:
    """A graph being written: values have axes, as tracing leaves them."""

    def __init__(self, **inputs):
        self.values = {
            name: ir.Value(name=name, shape=ir.Shape(axes), type=ir.TensorType(ir.DataType.FLOAT))
            for name, axes in inputs.items()
        }
        self.inputs = list(self.values.values())
        self.initializers = []
        self.nodes = []

    def constant(self, tensor):
        name = f"c{len(self.initializers)}"
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype),
                         const_value=tensor)  # fmt: skip
        self.initializers.append(value)
        return value

    def add(self, op_type, *inputs, axes=None, dtype=ir.DataType.FLOAT, **attributes):
        made = [self.constant(v) if isinstance(v, ir.TensorProtocol) else v for v in inputs]
        node = ir.node(op_type, made, attributes=attributes)
        self.nodes.append(node)
        (result,) = node.outputs
        result.name = f"v{len(self.nodes)}"
        result.type = ir.TensorType(dtype)
        result.shape = ir.Shape(axes) if axes is not None else None
        return result

    def build(self, output, opset=20):
        graph = ir.Graph(self.inputs, [output], nodes=self.nodes, initializers=self.initializers,
                         opset_imports={"": opset}, name="main")  # fmt: skip
        return ir.Model(graph, ir_version=10)


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def check(model, expected_nodes, *, rewrite=rewrite, exact=True, **shapes):
    """Rewrite `model`; its outputs stay, and its nodes become those that are expected."""
    random = np.random.default_rng(0)
    feeds = {name: random.normal(size=axes).astype(np.float32) for name, axes in shapes.items()}
    before = run(model, feeds)
    rewrite(model)
    common_passes.RemoveUnusedNodesPass()(model)
    after = run(model, feeds)
    assert after.shape == before.shape
    assert np.array_equal(after, before) if exact else np.allclose(after, before, atol=2e-6)
    assert Counter(node.op_type for node in model.graph) == Counter(expected_nodes)
