"""Int4 in bytes: onnx and ONNX Runtime read what is packed, and give what `dequantize` gives."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.compiled import kernels
from lora_export.weights.quantization import packing
from lora_export.weights.quantization.blocks import dequantize, quantize_blocks
from lora_export.weights.quantization.packing import pack_int4, unpack_int4

SCALES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def implementation(request, monkeypatch) -> str:
    """Run each test with the compiled module, where there is one, and without."""
    if request.param == "numpy":
        monkeypatch.setattr(packing, "kernels", None)
    elif kernels is None:
        pytest.skip("lora_export.core._kernels was not built: no compiler, or another processor")
    return request.param


@pytest.mark.parametrize("shape", [(16,), (2, 8), (5, 4), (3, 6, 2), (0, 4), (101, 38)])
def test_onnx_reads_and_writes_the_same_bytes(shape) -> None:
    q = np.random.default_rng(0).integers(-8, 8, shape).astype(np.int8)
    packed = pack_int4(q)
    tensor = helper.make_tensor("q", TensorProto.INT4, shape, packed.tobytes(), raw=True)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), q)
    theirs = numpy_helper.from_array(q.astype(ml_dtypes.int4))
    assert theirs.raw_data == packed.tobytes()
    assert unpack_int4(packed, shape).tobytes() == q.tobytes()
    assert unpack_int4(packed, shape).shape == shape


def test_every_byte_is_two_integers() -> None:
    every = np.arange(256, dtype=np.uint8)
    assert pack_int4(unpack_int4(every, (512,))).tobytes() == every.tobytes()
    assert unpack_int4(np.array([0x8F], np.uint8), (2,)).tolist() == [-1, -8]
    assert unpack_int4(every.view(np.int8)[::2], (16, 16)).shape == (16, 16)


def test_strides_are_followed() -> None:
    q = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    assert pack_int4(q.T).tobytes() == pack_int4(q.T.copy()).tobytes()


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="15 integers of 4 bits"):
        pack_int4(np.zeros((3, 5), np.int8))
    with pytest.raises(ValueError, match="given as int8, not float32"):
        pack_int4(np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="hold 8 integers"):
        unpack_int4(np.zeros(4, np.uint8), (3, 3))


def test_buffers_that_do_not_go_together_are_refused(implementation) -> None:
    if implementation == "numpy":
        return
    for count in (6, 7, 9):
        with pytest.raises(ValueError, match=f"{count} integers of 4 bits do not go with 4 bytes"):
            kernels.pack_int4(np.zeros(count, np.int8), np.zeros(4, np.uint8))


@pytest.mark.parametrize("dtype", list(SCALES), ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("block_size", "method"), [(16, "search"), (32, "signed")])
def test_onnx_runtime_dequantizes_to_the_same_values(dtype, bits, block_size, method) -> None:
    random = np.random.default_rng(bits)
    values = (random.standard_normal((96, 70)) * 0.1).astype(np.float32)
    q, scales = quantize_blocks(
        values, bits=bits, block_size=block_size, method=method, scale_dtype=dtype
    )
    kind, raw = {4: (TensorProto.INT4, pack_int4(q)), 8: (TensorProto.INT8, q)}[bits]
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=block_size)],
        "blocks",
        [],
        [helper.make_tensor_value_info("w", SCALES[dtype], q.shape)],
        [
            helper.make_tensor("q", kind, q.shape, raw.tobytes(), raw=True),
            numpy_helper.from_array(scales, "s"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {})
    assert found.tobytes() == dequantize(q, scales, block_size).astype(dtype).tobytes()


@pytest.mark.parametrize("method", ["search", "signed"])
def test_onnx_runtime_multiplies_by_the_same_values(method) -> None:
    random = np.random.default_rng(0)
    values = (random.standard_normal((128, 96)) * 0.1).astype(np.float32)
    q, scales = quantize_blocks(
        values, bits=4, block_size=32, method=method, scale_dtype=np.float32
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, width])
        for name, width in (("x", 128), ("y", 96))
    ]
    stored = [
        helper.make_tensor("q", TensorProto.INT4, q.shape, pack_int4(q).tobytes(), raw=True),
        numpy_helper.from_array(scales, "s"),
    ]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = random.standard_normal((4, 128)).astype(np.float32)
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], x @ dequantize(q, scales, 32), atol=1e-5
    )
