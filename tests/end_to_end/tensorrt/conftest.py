"""What needs TensorRT and a GPU: marked, and skipped with the reason where they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.api import import_tensorrt
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.libraries import TENSORRT, library_of, library_title

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
    """Exports of a classifier, of decoders and of a pair, in a dtype; engines are built in them."""
    from tests.helpers.builds import build

    root = tmp_path_factory.mktemp(f"trt-{request.param}")
    task = "text-classification"
    base = tiny.base("roberta", task)
    adapters = {"one": tiny.adapter(base, r=4, seed=1), "two": tiny.adapter(base, r=2, seed=2)}
    build(base, adapters, root / "merged", task=task, dtype=request.param)
    build(base, adapters, root / "swappable", task=task, dtype=request.param, mode="swappable")
    decoder = tiny.base("gpt2", "text-generation")
    own = tiny.adapter(decoder, task="text-generation", labels_count=None)
    text = {"task": "text-generation", "dtype": request.param}
    build(decoder, {"one": own}, root / "decoder", **text)
    build(decoder, {"one": own}, root / "static", cache_length=24, **text)
    task = "text2text-generation"
    pair = tiny.base("bart", task)
    own = tiny.adapter(pair, task=task, labels_count=None)
    build(pair, {"one": own}, root / "pair", task=task, dtype=request.param)
    return root
