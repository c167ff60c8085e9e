"""Quantized weights before a build: parsers, GPUs, ``trtexec``, and the memory that they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.commands import engines
from lora_export.core.errors import UnsupportedError
from lora_export.core.quantization_record import QuantizationRecord
from lora_export.core.targets import TARGETS
from lora_export.engines.ahead_of_time import weight_bytes
from lora_export.engines.engine_build import describe_build
from lora_export.engines.engine_options import EngineOptions
from lora_export.engines.graph_view import view
from lora_export.engines.jobs import jobs_of
from lora_export.engines.memory_need import estimate_memory, stored_bytes
from lora_export.engines.parser_table import parser_of, version_of
from lora_export.engines.preflight import check_graph
from lora_export.engines.quantized_weights import check_scales
from lora_export.ondevice.trt.build_settings import ShapeRange
from tests.cli.exports import manifest_of
from tests.cli.running import call
from tests.helpers.node_graphs import graph, node

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = {"kind": TensorProto.INT64, "out": TensorProto.FLOAT, "shape": ("batch", 8)}
FIXED = {"x": ShapeRange((1, 64), (1, 64), (1, 64))}


def four_bits(rows: int = 64, columns: int = 32) -> tuple[list[Any], list[TensorProto]]:
    """Return ``y = x @ dequantized W`` with blocks of 32, and its initializers."""
    values = bytes(rows * columns // 2)
    packed = helper.make_tensor("w.q", TensorProto.INT4, (rows, columns), values, raw=True)
    scales = numpy_helper.from_array(np.ones((rows // 32, columns), np.float32), "w.s")
    nodes = [
        node("DequantizeLinear", ["w.q", "w.s"], outputs=["w"], axis=0, block_size=32, name="w.dq"),
        node("MatMul", ["x", "w"]),
    ]
    return nodes, [packed, scales]


def lookup() -> tuple[list[Any], list[TensorProto]]:
    table = numpy_helper.from_array(np.ones((16, 8), np.int8), "t.q")
    nodes = [
        node("Gather", ["t.q", "x"], outputs=["rows"], name="rows"),
        node("Transpose", ["rows"], outputs=["turned"], perm=[0, 2, 1]),
        node("Cast", ["turned"], to=TensorProto.FLOAT),
    ]
    return nodes, [table]


def found(nodes: Any, weights: Any, target: str, version: str, **settings: Any) -> dict[str, str]:
    """Return the severity of what is found, by code."""
    data = graph(nodes, weights=weights, **settings)
    library = "tensorrt-rtx" if target == "rtx" else "tensorrt"
    report = check_graph(data, TARGETS[target], version, library=library)
    return {each.code: each.severity for each in report.findings}


@pytest.mark.parametrize(
    ("target", "version", "severity"),
    [("jetson-orin", "10.3", "error"), ("jetson-orin", "10.16", None), ("h100", "10.3", "warning"),
     ("rtx", "1.7", None)],
)  # fmt: skip
def test_blocks_are_found_where_the_parser_is_not_known_to_read_them(
    target: str, version: str, severity: str | None
) -> None:
    codes = found(*four_bits(), target, version, opset=21, shape=("batch", 64))
    assert codes.get("quantized-blocks") == severity
    assert "type" not in codes
    assert ("opset" in codes) == (severity is not None)


def test_an_embedding_of_int8_is_no_wrong_type_and_an_input_of_int8_is() -> None:
    assert found(*lookup(), "rtx", "1.7", **ROWS)["quantized-lookup"] == "note"
    assert "type" not in found(*lookup(), "rtx", "1.7", **ROWS)
    cast = [node("Cast", ["x"], to=TensorProto.FLOAT)]
    codes = found(cast, [], "rtx", "1.7", kind=TensorProto.INT8, out=TensorProto.FLOAT)
    assert codes["type"] == "warning"
    assert "quantized-lookup" not in codes


@pytest.mark.parametrize(
    ("weights", "head", "method", "library", "severity"),
    [
        ("int4", None, "signed", "tensorrt", "error"),
        ("int4", None, "signed", "tensorrt-rtx", "warning"),
        ("int8", "int4", "signed", "tensorrt", "error"),
        ("int8", None, "signed", "tensorrt", None),
        ("int4", None, "search", "tensorrt", None),
        ("int4", None, "of_a_later_version", "tensorrt", None),
    ],
)
def test_negative_scales_are_found_by_the_method(weights, head, method, library, severity) -> None:
    record = QuantizationRecord(weights=weights, head=head, method=method)
    severities = [each.severity for each in check_scales(record, library)]
    assert severities == ([] if severity is None else [severity])
    assert not list(check_scales(None, library))


def test_a_target_in_question_has_a_version_that_reads_blocks() -> None:
    for row in TARGETS.values():
        if row.blocks is not None:
            assert parser_of(row.tensorrt[0]).opset_max < 21 <= parser_of(row.blocks).opset_max
            assert version_of(row.tensorrt[0]) < version_of(row.blocks)


def test_the_memory_is_that_of_the_integers() -> None:
    nodes, weights = four_bits()
    seen = view(onnx.load_model_from_string(
        graph(nodes, weights=weights, opset=21, shape=(1, 64))
    ))  # fmt: skip
    memory = estimate_memory(seen, [FIXED])
    assert memory.weights_bytes == 64 * 32 // 2 + 2 * 32 * 4
    assert memory.activations_bytes == 0  # w is dequantized as it is read


def test_initializers_at_one_place_of_a_file_count_once() -> None:
    first = numpy_helper.from_array(np.ones((4, 4), np.int8), "t.quantized")
    onnx.external_data_helper.set_external_data(first, "weights.safetensors", offset=64, length=16)
    second, third = onnx.TensorProto(), onnx.TensorProto()
    second.CopyFrom(first)
    second.name = "t.quantized.2"
    third.CopyFrom(first)
    third.name = "other"
    onnx.external_data_helper.set_external_data(third, "weights.safetensors", offset=80, length=16)
    assert stored_bytes([first, second, third]) == 32


def test_four_bits_on_turing_are_refused_before_the_build(
    export: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    export_dir = export("int4")
    result = call(
        capsys, "build", str(export_dir), "--target", "rtx", "--compute-capability", "7.5,8.6"
    )
    assert result.code == 4
    assert "no engine in int4 for compute capability 7.5" in result.err
    assert "Those that have it: 8.0, 8.6, 8.9, 12.0, 12.1." in result.err
    assert "--quantize int8" in result.err
    assert not (export_dir / "engines").exists()


def test_trtexec_is_not_given_integers_that_are_looked_up(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    export_dir = export("int4")
    monkeypatch.setattr("lora_export.engines.engine_build.find_trtexec", lambda: "trtexec")
    monkeypatch.setattr("lora_export.engines.engine_build.import_library", lambda _: None)
    with pytest.raises(UnsupportedError, match="looked up as int8"):
        engines.build(export_dir, "l4", trtexec=True)
    (planned,) = engines.plan_build(export_dir, "l4", graphs=["one"])
    assert planned["trtexec"] is None


def test_the_estimate_of_a_build_counts_what_is_stored(export: Callable[[str], Path]) -> None:
    export_dir = export("int4")
    files = manifest_of(export_dir)["graphs"]["one"]["weights"]
    stored = sum((export_dir / each).stat().st_size for each in files)
    counted = weight_bytes((export_dir / "one.onnx").read_bytes())
    assert counted < stored  # the adapter's file replaces some of the base's
    assert counted > stored / 2
    (job,) = jobs_of(export_dir, engines.read_manifest(export_dir), "l4", ["one"], EngineOptions())
    assert describe_build(job, "10.16")["settings"]["precision"] == "float16"
