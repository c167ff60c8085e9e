"""ONNX Runtime's own quantizers, which Olive and genai's builder call, on one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as quantizers

if TYPE_CHECKING:
    from collections.abc import Mapping

PEERS: Final[Mapping[str, Any]] = {
    "ONNX Runtime's round to nearest": quantizers.DefaultWeightOnlyQuantConfig,
    "ONNX Runtime's HQQ": quantizers.HQQWeightOnlyQuantConfig,
    "ONNX Runtime's k-quant": quantizers.KQuantWeightOnlyQuantConfig,
}
"""Round to nearest is symmetric, as ours; the other two have zero points, and half a byte more for
each block."""


def peer_values(values: Any, peer: str, block_size: int) -> Any:
    """Return what a matrix ``[K, N]`` becomes in four bits, by multiplying it with the identity."""
    rows = values.shape[0]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", values.shape[1]])],
        [numpy_helper.from_array(values, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    kind = PEERS[peer]
    settings = {"is_symmetric": True} if kind is quantizers.DefaultWeightOnlyQuantConfig else {}
    if kind is not quantizers.KQuantWeightOnlyQuantConfig:
        settings["block_size"] = block_size
    config = kind(**settings)
    made = quantizers.MatMulNBitsQuantizer(
        model, block_size=block_size, is_symmetric=True, accuracy_level=0, algo_config=config
    )
    made.process()
    quantized = made.model.model
    assert any(node.op_type == "MatMulNBits" for node in quantized.graph.node), peer
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        onnx.ModelProto.SerializeToString(quantized), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": np.eye(rows, dtype=np.float32)})[0]
