"""Low-rank terms as optional inputs, against NumPy in float64, on graphs written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.errors import ExportDirectoryError, UnsupportedError
from lora_export.core.parameters import Parameter
from lora_export.graph.adapters.swappable_graph import LORA_SCALE, Slots, optional_inputs, with_lora
from lora_export.graph.nodes.weight_uses import sizes_of

VOCABULARY, WIDTH, OUT, LABELS = 11, 6, 5, 3
Array = npt.NDArray[Any]

TABLE = Parameter("table.weight", (VOCABULARY, WIDTH), "float32", "Embedding")
LINEAR = Parameter("linear.weight", (OUT, WIDTH), "float32", "Linear", transposed=True)
CONV1D = Parameter("conv.weight", (OUT, OUT), "float32", "Conv1D")
GEMM = Parameter("gemm.weight", (LABELS, OUT), "float32", "Linear")
GEMM_BIAS = Parameter("gemm.bias", (LABELS,), "float32", "Linear")
ALL = (TABLE, LINEAR, CONV1D, GEMM)

RNG = np.random.default_rng(7)
VALUES = {each.name: RNG.standard_normal(each.stored_shape).astype(np.float32)
          for each in (*ALL, GEMM_BIAS)}  # fmt: skip
VALUES["linear.bias"] = RNG.standard_normal(OUT).astype(np.float32)
IDS = np.array([3, 0, 10, 3])


def _graph() -> bytes:
    """ids → Gather → MatMul + bias → MatMul (square, Conv1D) → Gemm(transB) → logits."""
    nodes = [
        helper.make_node("Gather", ["table.weight", "ids"], ["x"], axis=0),
        helper.make_node("MatMul", ["x", "linear.weight"], ["product"]),
        helper.make_node("Add", ["product", "linear.bias"], ["h"]),
        helper.make_node("MatMul", ["h", "conv.weight"], ["k"]),
        helper.make_node("Gemm", ["k", "gemm.weight", "gemm.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["sequence", LABELS])],
        [numpy_helper.from_array(value, name) for name, value in VALUES.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _session(onnx_bytes: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, **feeds: Array) -> Array:
    return session.run(None, {"ids": IDS, **feeds})[0]


def _factors(ranks: dict[str, int]) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    sizes = {"table": (VOCABULARY, WIDTH), "linear": (WIDTH, OUT), "conv": (OUT, OUT),
             "gemm": (OUT, LABELS)}  # fmt: skip
    found = {}
    for module, rank in ranks.items():
        inputs, outputs = sizes[module]
        found[f"{module}.lora_A.weight"] = rng.standard_normal((inputs, rank)).astype(np.float32)
        found[f"{module}.lora_B.weight"] = rng.standard_normal((rank, outputs)).astype(np.float32)
    return found


def _expected(feeds: dict[str, Array], scale: float = 1.0) -> Array:
    """The same in float64, the update merged into each weight."""
    values = {name: value.astype(np.float64) for name, value in VALUES.items()}
    values["gemm.weight"] = values["gemm.weight"].T
    values |= {name: feeds[name].astype(np.float64) for name in feeds if name in VALUES}
    for module in ("table", "linear", "conv", "gemm"):
        weight = values[f"{module}.weight"]
        if f"{module}.lora_A.weight" in feeds:
            a, b = (feeds[f"{module}.lora_{x}.weight"].astype(np.float64) for x in "AB")
            weight = weight + scale * a @ b
        values[module] = weight * feeds.get(f"{module}.lora_magnitude.scale", np.ones(1))
    h = values["table"][IDS] @ values["linear"] + values["linear.bias"]
    return h @ values["conv"] @ values["gemm"] + values["gemm.bias"]


def test_no_adapter_is_the_base_bit_for_bit() -> None:
    slots = Slots(ALL, frozenset(p.name for p in ALL), (GEMM, GEMM_BIAS), frozenset())
    assert np.array_equal(_run(_session(with_lora(_graph(), slots))), _run(_session(_graph())))


def test_every_layer_takes_any_rank_on_one_session() -> None:
    session = _session(with_lora(_graph(), Slots(ALL)))
    for ranks in ({"table": 2, "linear": 1, "conv": 5, "gemm": 3}, {"linear": 7}, {"table": 1}):
        feeds = _factors(ranks)
        np.testing.assert_allclose(_run(session, **feeds), _expected(feeds), rtol=2e-4, atol=2e-4)


def test_the_scale_multiplies_every_update() -> None:
    session = _session(with_lora(_graph(), Slots(ALL)))
    feeds = _factors({"table": 2, "linear": 2, "conv": 2, "gemm": 2})
    actual = _run(session, **feeds, **{LORA_SCALE: np.array(0.5, np.float32)})
    np.testing.assert_allclose(actual, _expected(feeds, 0.5), rtol=2e-4, atol=2e-4)


def test_magnitudes_scale_the_merged_outputs_and_leave_biases() -> None:
    session = _session(with_lora(_graph(), Slots(ALL, frozenset(p.name for p in ALL))))
    feeds = _factors({"table": 2, "linear": 2, "conv": 2, "gemm": 2})
    widths = {"table": WIDTH, "linear": OUT, "conv": OUT, "gemm": LABELS}
    feeds |= {
        f"{module}.lora_magnitude.scale": RNG.uniform(0.5, 2, width).astype(np.float32)
        for module, width in widths.items()
    }
    np.testing.assert_allclose(_run(session, **feeds), _expected(feeds), rtol=5e-4, atol=5e-4)


def test_heads_of_other_widths_run_in_one_graph() -> None:
    slots = Slots(
        (LINEAR,), values=(GEMM, GEMM_BIAS), resizable=frozenset({GEMM.name, GEMM_BIAS.name})
    )
    graph = with_lora(_graph(), slots)
    session = _session(graph)
    assert session.get_outputs()[0].shape == ["sequence", "labels"]
    for width in (2, 4):
        head = {
            "gemm.weight": RNG.standard_normal((width, OUT)).astype(np.float32),
            "gemm.bias": RNG.standard_normal(width).astype(np.float32),
        }
        expected = _expected({**head, "gemm.weight": head["gemm.weight"].T})
        np.testing.assert_allclose(_run(session, **head), expected, rtol=2e-4, atol=2e-4)
    assert _run(session).shape == (len(IDS), LABELS)


def test_the_inputs_are_optional_and_named_as_documented() -> None:
    slots = Slots((LINEAR,), frozenset({LINEAR.name}), (GEMM_BIAS,))
    graph = with_lora(_graph(), slots)
    assert optional_inputs(graph) == {
        "linear.lora_A.weight": (WIDTH, "linear.lora_r"),
        "linear.lora_B.weight": ("linear.lora_r", OUT),
        "linear.lora_magnitude.scale": (OUT,),
        "lora_scale": (),
        "gemm.bias": (LABELS,),
    }
    assert [each.name for each in _session(graph).get_inputs()] == ["ids"]
    onnx.checker.check_model(onnx.load_model_from_string(graph), full_check=True)


def test_a_weight_that_two_nodes_read_is_updated_in_both() -> None:
    model = onnx.load_model_from_string(_graph())
    model.graph.node.append(helper.make_node("MatMul", ["x", "linear.weight"], ["second"]))
    model.graph.output.append(
        helper.make_tensor_value_info("second", TensorProto.FLOAT, ["sequence", OUT])
    )
    session = _session(with_lora(model.SerializeToString(), Slots((LINEAR,))))
    feeds = _factors({"linear": 2})
    second = session.run(["second"], {"ids": IDS, **feeds})[0]
    merged = VALUES["linear.weight"] + feeds["linear.lora_A.weight"] @ feeds["linear.lora_B.weight"]
    np.testing.assert_allclose(second, VALUES["table.weight"][IDS] @ merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "parameter",
    [
        Parameter("linear.weight", (WIDTH, OUT), "float32", "Linear"),
        Parameter("gemm.weight", (OUT, LABELS), "float32", "Linear", transposed=True),
        Parameter("linear.bias", (OUT,), "float32", "Linear"),
        Parameter("table.weight", (WIDTH, VOCABULARY), "float32", "Linear", transposed=True),
    ],
)
def test_what_cannot_be_swapped_is_named(parameter: Parameter) -> None:
    with pytest.raises(UnsupportedError, match=parameter.name) as caught:
        with_lora(_graph(), Slots((parameter,)))
    assert "--mode merged" in str(caught.value.hint)


def test_a_parameter_that_the_graph_lacks_is_named() -> None:
    with pytest.raises(ExportDirectoryError, match=r"other\.weight"):
        with_lora(_graph(), Slots((Parameter("other.weight", (2, 2), "float32", "Linear"),)))


def test_a_kernel_has_no_sizes_of_a_matrix() -> None:
    kernel = Parameter("patches.weight", (8, 3, 2, 2), "float32", "Conv2d")
    with pytest.raises(UnsupportedError, match=r"patches\.weight.*not the matrix"):
        sizes_of(kernel)
    assert sizes_of(LINEAR) == (WIDTH, OUT)
    assert sizes_of(TABLE) == (VOCABULARY, WIDTH)
