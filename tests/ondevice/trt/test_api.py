"""Values on their way to TensorRT and back: dtypes, bfloat16, addresses."""

from __future__ import annotations

import importlib.util
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.api import (
    Log,
    array_of,
    from_bfloat16,
    import_library,
    numpy_dtype,
    to_bfloat16,
)
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from tests.helpers.double import install_double


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    return install_double(monkeypatch, "10.3.0")


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_bfloat16_is_rounded_as_ml_dtypes_does(values: Any) -> None:
    with np.errstate(all="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    bits = to_bfloat16(values)
    nan = np.isnan(values)
    assert bits.dtype == np.uint16
    np.testing.assert_array_equal(bits[~nan], expected.view(np.uint16)[~nan])
    back = from_bfloat16(bits)
    assert np.isnan(back[nan]).all()
    np.testing.assert_array_equal(back[~nan], expected[~nan].astype(np.float32))


def test_dtypes_have_the_sizes_that_tensorrt_has(trt: Any) -> None:
    sizes = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT64": 8, "INT32": 4, "INT8": 1, "BOOL": 1}
    for name, size in sizes.items():
        assert numpy_dtype(getattr(trt.DataType, name))[1].itemsize == size
    with pytest.raises(DeviceError, match="FP8"):
        numpy_dtype(trt.DataType.FP8)


def test_integers_change_their_width_where_they_fit(trt: Any) -> None:
    kept = array_of(np.array([[1, 2]], np.int64), "ids", trt.DataType.INT32)
    assert (kept.dtype, kept.tolist()) == (np.dtype(np.int32), [[1, 2]])
    assert array_of(np.array([1], np.int32), "ids", trt.DataType.INT64).dtype == np.int64
    with pytest.raises(DeviceError, match="'ids' holds integers that are too large for int32"):
        array_of(np.array([1 << 40]), "ids", trt.DataType.INT32)


def test_bfloat16_is_taken_as_bits_or_rounded(trt: Any) -> None:
    values = np.array([[1.0, 2.5], [3.0, -4.0]], np.float32)
    bits = values.astype(ml_dtypes.bfloat16)
    for each in (values, bits, bits.view(np.uint16)):
        found = array_of(each, "x", trt.DataType.BF16)
        np.testing.assert_array_equal(found, bits.view(np.uint16))
    with pytest.raises(DeviceError, match="'x' is float16, the engine reads bfloat16"):
        array_of(values.astype(np.float16), "x", trt.DataType.BF16)


def test_what_is_handed_over_is_contiguous(trt: Any) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    found = array_of(values, "x", trt.DataType.FLOAT)
    assert found.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(found, values)
    scalar = array_of(np.float32(2).reshape(()), "x", trt.DataType.FLOAT)
    assert scalar.shape == ()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: it has wheels for x86-64 Linux and Windows",
)
def test_the_real_library_tells_a_second_log_too() -> None:
    """It ignores a second logger while anything made with the first lives."""
    module = import_library(TENSORRT_RTX)
    first = Log(module)
    living = module.Builder(first.logger)
    second = Log(module)
    assert second.logger is first.logger
    network = module.Builder(second.logger).create_network(0)
    parser = module.OnnxParser(network, second.logger)
    assert parser.parse(b"no graph") is False
    assert "Failed to parse" in second.last_message()
    assert "logger" not in second.last_message()
    assert living is not None


def test_a_log_begins_when_it_is_made(trt: Any) -> None:
    first = Log(trt)
    first.logger.log(trt.ILogger.ERROR, "before")
    second = Log(trt)
    assert (first.last_message(), second.last_message()) == ("before", "TensorRT gives no reason")
    first.logger.log(trt.ILogger.INFO, "not kept")
    second.logger.log(trt.ILogger.WARNING, " both ")
    assert (first.last_message(), second.last_message()) == ("both", "both")
