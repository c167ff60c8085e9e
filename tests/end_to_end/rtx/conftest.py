"""Tests with TensorRT for RTX itself; skipped with the reason where it is not installed."""

from __future__ import annotations

import pytest

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.api import import_library
from lora_export.ondevice.trt.libraries import TENSORRT_RTX


@pytest.fixture(scope="session", autouse=True)
def _real() -> None:
    """Skip everything here where the library is not."""
    try:
        import_library(TENSORRT_RTX)
    except DeviceError as error:
        pytest.skip(f"needs TensorRT for RTX: {error.message}")
