"""Operators that each version of the parser reads, and those that are not documented."""

from __future__ import annotations

import onnx
import pytest

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.targets import TARGETS
from lora_export.engines.parser_table import ONNX_TYPES, parser_of, version_of
from lora_export.engines.preflight import check_graph
from lora_export.ondevice.device_errors import DeviceError
from tests.helpers.node_graphs import axes_of, graph, node


@pytest.mark.parametrize(
    ("operator", "first"),
    [
        ("STFT", "10.5"),
        ("HannWindow", "10.4"),
        ("Attention", "10.14"),
        ("RotaryEmbedding", "10.15"),
        ("RMSNormalization", "10.15"),
        ("TensorScatter", "10.15"),
        ("Swish", "11.0"),
    ],
)
def test_an_operator_is_read_from_its_version_on(operator, first):
    major, minor = map(int, first.split("."))
    before = parser_of(f"{major}.{minor - 1}" if minor else "10.16")
    assert before.support(operator) == "refused"
    assert before.later[operator] == first
    assert parser_of(first).support(operator) == "supported"
    assert parser_of("11.4").support(operator) == "supported"
    assert operator not in parser_of("11.4").later


def test_what_no_table_has_is_unknown_and_never_supported():
    for version in ("10.1", "10.3", "10.16", "11.4", "12.0"):
        assert parser_of(version).support("DoesNotExist") == "unknown"
        assert parser_of(version).support("NonMaxSuppression") == "supported"
        assert parser_of(version).support("Unique") == "refused"


def test_types_come_with_the_version():
    assert "INT64" not in parser_of("10.3").types["Pow"]
    assert "INT64" in parser_of("10.16").types["Pow"]
    assert parser_of("10.3").types["DequantizeLinear"] == ("INT8", "FP8", "INT4")
    assert parser_of("11.0").types["Swish"] == ()


def test_every_type_of_the_table_is_one_of_onnx():
    words = {word for each in parser_of("11.4").types.values() for word in each}
    assert words <= set(ONNX_TYPES.values())
    names = {word: onnx.TensorProto.DataType.Name(number) for number, word in ONNX_TYPES.items()}
    assert (names["FP8"], names["INT4"], names["FP4"]) == ("FLOAT8E4M3FN", "INT4", "FLOAT4E2M1")
    assert (names["BF16"], names["FP16"], names["FP64"]) == ("BFLOAT16", "FLOAT16", "DOUBLE")


def test_every_operator_of_the_table_is_one_of_onnx_or_a_known_old_name():
    own = {each.name for each in onnx.defs.get_all_schemas() if each.domain == ""}
    old = {"ImageScaler", "ParametricSoftplus", "ScaledTanh", "Scatter", "Upsample"}
    assert set(parser_of("11.4").types) - own <= old


@pytest.mark.parametrize(
    ("version", "newest"),
    [("10.1", 20), ("10.3.0", 20), ("10.14", 20), ("10.16", 24), ("11.4", 25)],
)
def test_the_newest_opset(version, newest):
    assert parser_of(version).opset_max == newest


def test_versions():
    assert version_of("10.3") == version_of("10.3.0.30") == (10, 3)
    assert version_of("10.13.3.9.post1") == (10, 13)
    for wrong in ("", "10", "ten", "10.x", "10.3;", "../10.3"):
        with pytest.raises(UsageError, match="is not a version of TensorRT"):
            version_of(wrong)
    with pytest.raises(UnsupportedError, match="older than the oldest supported"):
        version_of("8.6.1")


def test_tensorrt_for_rtx_reads_what_tensorrt_does_but_for_a_few():
    rtx, trt = parser_of("1.7", "tensorrt-rtx"), parser_of("11.4")
    assert (rtx.name, trt.name) == ("TensorRT for RTX 1.7", "TensorRT 11.4")
    assert set(trt.types) - set(rtx.types) == {"DeformConv", "NonZero", "RoiAlign"}
    assert set(rtx.types) - set(trt.types) == {"CausalConvWithState", "LinearAttention"}
    assert rtx.support("NonZero") == "refused"
    assert rtx.later == {}
    for wrong, error in (("1.6", DeviceError), ("2.0", DeviceError), ("x", DeviceError)):
        with pytest.raises(error):
            parser_of(wrong, "tensorrt-rtx")


def test_parsers_of_the_two_libraries_refuse_different_parts():
    top = graph([node("TopK", ["x", "k"], sorted=0, outputs=["y", "i"])],
                weights=[axes_of("k", [2])], shape=(4, 8))  # fmt: skip
    codes = {
        library: [each.code for each in check_graph(top, TARGETS[target], version,
                                                    library=library).findings]
        for library, target, version in (("tensorrt", "l4", "11.4"), ("tensorrt-rtx", "rtx", "1.7"))
    }  # fmt: skip
    assert "operator-restricted" in codes["tensorrt"]
    assert "operator-restricted" not in codes["tensorrt-rtx"]
