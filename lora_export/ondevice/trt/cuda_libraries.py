"""CUDA's libraries where they are installed: libcudart, else the driver's own, by its names.

libcudart comes with CUDA, JetPack, and NVIDIA's wheels. The driver's library comes with every
driver: a machine that plays games has no other.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["VARIABLE", "DriverLibrary", "cuda_libraries", "names_for"]

VARIABLE: Final = "LORA_EXPORT_CUDART"
"""An environment variable: the libcudart to load, where it is at none of the usual places."""


class _Names(NamedTuple):
    """The names of CUDA's libraries on a system.

    Attributes:
        runtime: libcudart, by names or paths that the system finds.
        folders: Where NVIDIA's wheels put it, below a folder of packages.
        pattern: Its name there.
        toolkit: Its folder below ``CUDA_PATH``, which CUDA's installer sets on Windows.
        driver: The driver's library.
    """

    runtime: tuple[str, ...]
    folders: tuple[str, ...]
    pattern: str
    toolkit: str | None
    driver: tuple[str, ...]


_LINUX: Final = _Names(
    runtime=(
        "libcudart.so",
        "libcudart.so.13",
        "libcudart.so.12",
        "libcudart.so.11.0",
        "/usr/local/cuda/lib64/libcudart.so",
    ),
    folders=("nvidia/cuda_runtime/lib", "nvidia/cu13/lib"),
    pattern="libcudart.so*",
    toolkit=None,
    driver=("libcuda.so.1", "libcuda.so"),
)
_WINDOWS: Final = _Names(
    runtime=("cudart64_13.dll", "cudart64_12.dll", "cudart64_110.dll"),
    folders=("nvidia/cuda_runtime/bin", "nvidia/cu13/bin", "nvidia/cu13/bin/x86_64"),
    pattern="cudart64_*.dll",
    toolkit="bin",
    driver=("nvcuda.dll",),
)


def names_for(platform: str) -> _Names:
    """Return the names of CUDA's libraries on a system.

    >>> names_for("win32").driver, names_for("linux").driver[0]
    (('nvcuda.dll',), 'libcuda.so.1')

    Args:
        platform: As `sys.platform` calls it.
    """
    return _WINDOWS if platform == "win32" else _LINUX


def cuda_libraries() -> Iterator[tuple[str, Any]]:
    """Yield the libraries that can be loaded, each with its name, in the order of preference."""
    if given := os.environ.get(VARIABLE):
        yield from _loaded([given], ctypes.CDLL)
        return
    names = names_for(sys.platform)
    yield from _loaded(_runtimes(names), ctypes.CDLL)
    yield from _loaded(names.driver, lambda name: DriverLibrary(ctypes.CDLL(name)))


def _loaded(names: Iterator[str] | tuple[str, ...] | list[str], load: Callable[[str], Any]) -> Any:
    for name in names:
        try:
            library = load(name)
        except OSError:
            continue
        yield name, library


def _runtimes(names: _Names) -> Iterator[str]:
    yield from names.runtime
    folders = [Path(entry, folder) for entry in sys.path for folder in names.folders]
    if names.toolkit is not None and (root := os.environ.get("CUDA_PATH")):
        folders.append(Path(root, names.toolkit))
    for folder in folders:
        yield from map(str, sorted(folder.glob(names.pattern)))


_SAME: Final = {
    "cudaDeviceGetAttribute": "cuDeviceGetAttribute",
    "cudaDriverGetVersion": "cuDriverGetVersion",
    "cudaFree": "cuMemFree_v2",
    "cudaGraphDestroy": "cuGraphDestroy",
    "cudaGraphExecDestroy": "cuGraphExecDestroy",
    "cudaGraphInstantiateWithFlags": "cuGraphInstantiateWithFlags",
    "cudaGraphLaunch": "cuGraphLaunch",
    "cudaMalloc": "cuMemAlloc_v2",
    "cudaMemGetInfo": "cuMemGetInfo_v2",
    "cudaRuntimeGetVersion": "cuDriverGetVersion",  # no runtime is used
    "cudaStreamBeginCapture": "cuStreamBeginCapture_v2",
    "cudaStreamDestroy": "cuStreamDestroy_v2",
    "cudaStreamEndCapture": "cuStreamEndCapture",
    "cudaStreamSynchronize": "cuStreamSynchronize",
}
"""The driver's functions that take what libcudart's take (NVIDIA's ``cuda.h``)."""

_COPIES: Final = {1: "cuMemcpyHtoDAsync_v2", 2: "cuMemcpyDtoHAsync_v2"}
"""By the kind of libcudart's copy: to the device, to the host."""

_NAME_BYTES: Final = 256
_FIRST: Final = 0


class DriverLibrary:
    """The driver's library, called by the names of libcudart's functions.

    The first device is used, in its primary context, which libcudart's users in the same process
    share. A context is current in one thread: it is made so before each call.

    Args:
        driver: The loaded library.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._context = ctypes.c_void_p()
        self.cudaGetErrorString = _ErrorText(driver)

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Return one of the functions that take the same."""
        if name not in _SAME:
            raise AttributeError(name)
        return self._function(_SAME[name])

    def _function(self, name: str) -> Callable[..., int]:
        function = getattr(self._driver, name)

        def call(*arguments: Any) -> int:
            self._driver.cuCtxSetCurrent(self._context)
            return int(function(*arguments))

        return call

    def cudaGetDeviceCount(self, count: Any) -> int:  # noqa: N802  (libcudart's name)
        """Start the driver, and count its devices."""
        device = ctypes.c_int(_FIRST)
        status = self._driver.cuInit(ctypes.c_uint(0)) or self._driver.cuDeviceGetCount(count)
        if status == 0 and self._context.value is None and count._obj.value:  # noqa: SLF001  (ctypes has no other name)
            status = self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device)
        return int(status)

    def cudaGetDevice(self, device: Any) -> int:  # noqa: N802
        """Name the first device."""
        device._obj.value = _FIRST  # noqa: SLF001
        return 0

    def cudaGetDeviceProperties(self, properties: Any, device: Any) -> int:  # noqa: N802
        """Write the name of a device, which is all that is read."""
        size = ctypes.c_int(_NAME_BYTES)
        return int(self._driver.cuDeviceGetName(properties, size, device))

    def cudaMemcpyAsync(  # noqa: N802
        self, target: Any, source: Any, size: Any, kind: Any, stream: Any
    ) -> int:
        """Copy between host and device."""
        return self._function(_COPIES[kind.value])(target, source, size, stream)

    def cudaStreamCreate(self, stream: Any) -> int:  # noqa: N802
        """Make a stream."""
        return self._function("cuStreamCreate")(stream, ctypes.c_uint(0))


class _ErrorText:
    """The text of a status, as ``cudaGetErrorString`` returns it."""

    restype: Any = None

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def __call__(self, status: Any) -> bytes | None:
        text = ctypes.c_char_p()
        self._driver.cuGetErrorString(status, ctypes.byref(text))
        return text.value
