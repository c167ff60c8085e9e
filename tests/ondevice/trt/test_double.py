"""The double of TensorRT: no more than the real bindings have, and as strict where it matters."""

from __future__ import annotations

import enum
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.ondevice.trt.api import Log
from lora_export.ondevice.trt.libraries import LIBRARIES, library_of
from tests.helpers.double import RTX_VERSION, VERSIONS, install_double, load_double
from tests.helpers.tensorrt_api import API, _arguments

if TYPE_CHECKING:
    from pathlib import Path

KNOBS = {
    "cudart", "fused", "refit_fails_after", "builds", "validity", "compiled", "recorded",
}  # fmt: skip
"""What the double has for tests."""


def version_of(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def members(kind: type) -> dict[str, Any]:
    return {name: each for name, each in vars(kind).items() if not name.startswith("_")}


def _called(signature: str, own: list[str]) -> bool:
    """Whether arguments are those of a signature; what has a default may be left out."""
    names, required = _arguments(signature)
    return required <= len(own) and names[: len(own)] == own


@pytest.mark.parametrize("version", [*VERSIONS, RTX_VERSION])
def test_every_name_is_in_the_real_bindings(version: str) -> None:
    module, api = load_double(version), API(version_of(version))
    names = {
        name: each
        for name, each in vars(module).items()
        if not name.startswith("_")
        and name not in KNOBS
        and (inspect.isclass(each) or inspect.isfunction(each))
        and each.__module__.partition(".")[0] == "tensorrt_double"
    }
    assert len(names) > 20
    for name, kind in names.items():
        assert api.has("trt", name), name
        if issubclass(kind, enum.Enum):
            assert [each.name for each in kind] == api.table["enums"][name]
            continue
        for member, value in members(kind).items():
            assert api.has(name, member), f"{name}.{member}"
            signatures = api.signatures(name, member)
            if inspect.isfunction(value):
                own = list(inspect.signature(value).parameters)[1:]
                assert any(_called(each, own) for each in signatures or ()), f"{name}.{member}"
            else:
                assert not signatures, f"{name}.{member} is a method"


def test_it_calls_itself_a_double() -> None:
    module = load_double("10.3.0")
    assert library_of(module) == "tensorrt-double"
    assert library_of(module) not in LIBRARIES
    assert "double" in (module.__doc__ or "")
    assert "No TensorRT runs here" in (module.__doc__ or "")
    assert "double" in module.cudart.name


def _network(module: Any, *, default: bool = False) -> tuple[Any, Any, Any]:
    """Return builder, network and config of ``y = x W``, W refittable; x maybe with a default."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    weights = [numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")]
    if default:
        weights.append(numpy_helper.from_array(np.zeros((1, 2), np.float32), "x"))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    log = Log(module)
    builder = module.Builder(log.logger)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, log.logger)
    assert parser.parse(model.SerializeToString()) is True
    return builder, network, builder.create_builder_config()


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Any:
    return install_double(monkeypatch, "10.3.0")


def _profiled(builder: Any, config: Any) -> None:
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 2), (2, 2), (4, 2))
    config.add_optimization_profile(profile)


def test_dynamic_inputs_need_a_profile(double: Any) -> None:
    builder, network, config = _network(double)
    assert builder.build_serialized_network(network, config) is None
    config.add_optimization_profile(builder.create_optimization_profile())
    assert builder.build_serialized_network(network, config) is None


def test_a_profile_is_in_order(double: Any) -> None:
    builder, _, _ = _network(double)
    with pytest.raises(ValueError, match="inconsistent"):
        builder.create_optimization_profile().set_shape("x", (4, 2), (2, 2), (8, 2))


def test_an_input_with_a_default_is_dropped(double: Any) -> None:
    _, network, _ = _network(double, default=True)
    assert network.num_inputs == 0
    _, network, _ = _network(double)
    assert network.num_inputs == 1


def test_flags_of_other_versions_are_not_there() -> None:
    assert hasattr(load_double("10.16.1.11").BuilderFlag, "FP16")
    assert not hasattr(load_double("11.4.0").BuilderFlag, "FP16")
    assert not hasattr(load_double("10.3.0").HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY")


def test_unknown_network_flags_are_refused(double: Any) -> None:
    with pytest.raises(ValueError, match="unknown network flags"):
        double.Builder(Log(double).logger).create_network(1 << 9)


def test_refit_needs_marks_and_the_right_flag(double: Any) -> None:
    builder, network, config = _network(double)
    _profiled(builder, config)
    assert network.mark_weights_refittable("nothing") is False
    assert network.mark_weights_refittable("w") is True
    assert builder.build_serialized_network(network, config) is None
    config.set_flag(double.BuilderFlag.REFIT_INDIVIDUAL)
    config.set_flag(double.BuilderFlag.REFIT)
    assert builder.build_serialized_network(network, config) is None
    config.clear_flag(double.BuilderFlag.REFIT)
    plan = builder.build_serialized_network(network, config)
    engine = double.Runtime(Log(double).logger).deserialize_cuda_engine(plan)
    assert double.Refitter(engine, Log(double).logger).get_all_weights() == ["w"]


def test_plans_are_refused_when_truncated_or_of_another_version(double: Any) -> None:
    builder, network, config = _network(double)
    _profiled(builder, config)
    plan = builder.build_serialized_network(network, config)
    runtime = double.Runtime(Log(double).logger)
    assert runtime.deserialize_cuda_engine(plan) is not None
    assert runtime.deserialize_cuda_engine(plan[:-1]) is None
    with pytest.raises(TypeError, match="factory function returned nullptr"):
        double.Refitter(runtime.deserialize_cuda_engine(plan), Log(double).logger)


def test_shapes_outside_of_a_profile_are_refused(double: Any) -> None:
    builder, network, config = _network(double)
    _profiled(builder, config)
    engine = double.Runtime(Log(double).logger).deserialize_cuda_engine(
        builder.build_serialized_network(network, config)
    )
    context = engine.create_execution_context()
    assert context.set_input_shape("x", (5, 2)) is False
    assert context.infer_shapes() == ["x"]
    assert context.set_input_shape("x", (4, 2)) is True
    assert tuple(context.get_tensor_shape("y")) == (4, 2)
    assert context.set_tensor_address("x", 0) is False


def test_an_operator_of_nobody_is_refused(double: Any, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(
        helper.make_model(
            helper.make_graph(
                [helper.make_node("Gelu2", ["x"], ["y"])],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
            )
        ).SerializeToString()
    )
    builder = double.Builder(Log(double).logger)
    parser = double.OnnxParser(builder.create_network(2), Log(double).logger)
    assert parser.parse(model.SerializeToString()) is False
    assert parser.get_error(0).node_operator() == "Gelu2"
