"""Tests with TensorRT for RTX and a GPU: marked, and skipped with the reason without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.core.targets import RTX
from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.api import import_library
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.libraries import LIBRARIES, TENSORRT_RTX
from tests.helpers.engine_exports import build_kinds

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


def _lacking() -> str | None:
    try:
        import_library(TENSORRT_RTX)
        gpu = open_cuda().gpu()
    except DeviceError as error:
        return error.message
    known = LIBRARIES[TENSORRT_RTX].default_capabilities
    if gpu.compute_capability not in known and float(gpu.compute_capability) < float(known[-1]):
        return f"{gpu.name} ({gpu.compute_capability}) is no GPU that the target {RTX!r} is for"
    return None


@pytest.fixture(scope="session", autouse=True)
def _real() -> None:
    """Skip everything here where no such engine runs."""
    if reason := _lacking():
        pytest.skip(f"needs TensorRT for RTX and a GPU: {reason}")


@pytest.fixture(scope="session", params=["float32", "float16"])
def rtx_exports(
    request: pytest.FixtureRequest, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Exports of every kind in a dtype, verified; engines are built in them."""
    root = tmp_path_factory.mktemp(f"rtx-{request.param}")
    return build_kinds(tiny, root, request.param, verify={"enabled": True})
