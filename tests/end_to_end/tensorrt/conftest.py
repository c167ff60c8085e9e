"""Tests with TensorRT and a GPU: marked, and skipped with the reason without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.api import import_tensorrt
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.libraries import TENSORRT, library_of, library_title
from tests.helpers.engine_exports import build_kinds

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


def _lacking() -> str | None:
    try:
        if (library := library_of(import_tensorrt())) != TENSORRT:
            return f"{library_title(library)} is in TensorRT's place"
        open_cuda()
    except DeviceError as error:
        return error.message
    return None


@pytest.fixture(scope="session", autouse=True)
def _real() -> None:
    """Skip everything here where TensorRT does not run."""
    if reason := _lacking():
        pytest.skip(f"needs TensorRT and a GPU: {reason}")


@pytest.fixture(scope="session", params=["float32", "float16"])
def real_exports(
    request: pytest.FixtureRequest, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Exports of every kind, in a dtype; engines are built in them."""
    return build_kinds(tiny, tmp_path_factory.mktemp(f"trt-{request.param}"), request.param)
