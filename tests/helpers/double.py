"""The double of TensorRT, put in its place for a test; see ``tests/fakes/tensorrt_double``."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.fakes.cudart import DoubleCudart

if TYPE_CHECKING:
    import pytest

__all__ = ["RTX_VERSION", "VERSIONS", "install_double", "load_double"]

VERSIONS: Final = ("10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11", "11.4.0")
"""The versions that there are API data of."""

RTX_VERSION: Final = "1.7.1.116"
"""The version of TensorRT for RTX that there are API data of."""

_NAME: Final = "tensorrt_double"
_SOURCE: Final = Path(__file__).resolve().parents[1] / "fakes" / _NAME / "__init__.py"


def load_double(version: str) -> Any:
    """Return a module that stands for TensorRT of a version, with a CUDA double of its own."""
    for name in [name for name in sys.modules if name.partition(".")[0] == _NAME]:
        del sys.modules[name]  # that of another version: its parts know it
    spec = importlib.util.spec_from_file_location(_NAME, _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["_version"] = version
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    module.cudart = DoubleCudart()
    return module


def install_double(
    patch: pytest.MonkeyPatch, version: str = "10.3.0", *, library: str = "tensorrt"
) -> Any:
    """Put the double in the place of `tensorrt` and of libcudart; return the module.

    As `tensorrt_rtx`, with `RTX_VERSION`, it calls itself so: what is peculiar to that library
    hangs on its name.
    """
    module = load_double(version)
    if library != "tensorrt":
        module.__name__ = library
        module.cudart.name, module.cudart.capability = "RTX 4090 (double)", (8, 9)
    patch.setitem(sys.modules, library, module)
    patch.setenv("LORA_EXPORT_CUDART", "double")
    real = ctypes.CDLL
    patch.setattr(
        ctypes,
        "CDLL",
        lambda name, *rest, **more: (
            module.cudart if name == "double" else real(name, *rest, **more)
        ),
    )
    return module
