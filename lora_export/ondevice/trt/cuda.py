"""CUDA's memory, streams and graphs through ctypes: no further package is needed.

Only functions whose signature is the same in CUDA 11.4 to 13 are called, of libcudart or, by the
same names, of the driver.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.cuda_libraries import VARIABLE, cuda_libraries

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Cuda", "DeviceBuffer", "Gpu", "open_cuda"]

_TO_DEVICE: Final = 1  # cudaMemcpyHostToDevice
_TO_HOST: Final = 2  # cudaMemcpyDeviceToHost
_CAPABILITY: Final = (75, 76)  # cudaDevAttrComputeCapabilityMajor, …Minor
_THREAD_LOCAL: Final = 1  # cudaStreamCaptureModeThreadLocal
_OUT_OF_MEMORY: Final = 2  # cudaErrorMemoryAllocation
_PROPERTIES_BYTES: Final = 1 << 14
"""More than any cudaDeviceProp; its first 256 bytes are the name."""

_SMALLEST_BYTES: Final = 256
"""An empty tensor has an address too: TensorRT refuses a null pointer."""


class Gpu:
    """The present device: what a plan is tied to.

    Attributes:
        name: Its name.
        compute_capability: Such as ``8.7``.
        memory_bytes: Its memory; a Jetson shares it with the processor.
    """

    def __init__(self, name: str, compute_capability: str, memory_bytes: int) -> None:
        self.name = name
        self.compute_capability = compute_capability
        self.memory_bytes = memory_bytes


def open_cuda() -> Cuda:
    """Load CUDA's library, and require a device.

    Raises:
        DeviceError: There is no library, or no device.
    """
    loaded = []
    for name, library in cuda_libraries():
        cuda = Cuda(library)
        if cuda.device_count() > 0:
            return cuda
        loaded.append(name)
    if loaded:
        msg = f"{loaded[0]} finds no CUDA device"
        raise DeviceError(msg, hint="Is the NVIDIA driver loaded?", kind="missing")
    msg = "neither the CUDA runtime, libcudart, nor the library of NVIDIA's driver was found"
    raise DeviceError(
        msg,
        hint=f"Install the driver. CUDA and JetPack bring libcudart; {VARIABLE}=FILE names one "
        "elsewhere.",
        kind="missing",
    )


class Cuda:
    """The functions of libcudart that are used; a failing one raises `DeviceError`.

    Args:
        library: The loaded library; see `cuda_libraries`.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raw = self._library.cudaGetErrorString(ctypes.c_int(status))
            text = raw.decode("utf-8", "replace") if raw else "unknown error"
            msg = f"{function} failed: {text} ({status})"
            hint = "Build with smaller profiles." if status == _OUT_OF_MEMORY else None
            raise DeviceError(msg, hint=hint)

    def device_count(self) -> int:
        """Return the number of devices; 0 where the driver is missing."""
        count = ctypes.c_int(0)
        status = self._library.cudaGetDeviceCount(ctypes.byref(count))
        return count.value if status == 0 else 0

    def gpu(self) -> Gpu:
        """Return the properties of the present device."""
        device = ctypes.c_int(0)
        self._call("cudaGetDevice", ctypes.byref(device))
        parts = []
        for attribute in _CAPABILITY:
            value = ctypes.c_int(0)
            self._call(
                "cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device
            )
            parts.append(str(value.value))
        _, total = self.memory_bytes()
        return Gpu(self._name(device), ".".join(parts), total)

    def _name(self, device: ctypes.c_int) -> str:
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        versioned = hasattr(self._library, "cudaGetDeviceProperties_v2")
        name = "cudaGetDeviceProperties_v2" if versioned else "cudaGetDeviceProperties"
        self._call(name, properties, device)
        return properties.value[:_SMALLEST_BYTES].decode("utf-8", "replace")

    def memory_bytes(self) -> tuple[int, int]:
        """Return the free and the whole memory of the device."""
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def versions(self) -> tuple[str, str]:
        """Return the version of CUDA that the driver supports, and that of the runtime."""
        found = []
        for function in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"):
            value = ctypes.c_int(0)
            self._call(function, ctypes.byref(value))
            found.append(f"{value.value // 1000}.{value.value % 1000 // 10}")
        return found[0], found[1]

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        return pointer.value or 0

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def copy_to_device(self, address: int, values: np.ndarray[Any, Any], stream: int) -> None:
        """Copy a contiguous array to the device, in the order of the stream."""
        self._copy(address, values.ctypes.data, values.nbytes, _TO_DEVICE, stream)

    def copy_to_host(self, values: np.ndarray[Any, Any], address: int, stream: int) -> None:
        """Fill a contiguous array from the device, in the order of the stream."""
        self._copy(values.ctypes.data, address, values.nbytes, _TO_HOST, stream)

    def _copy(self, target: int, source: int, size_bytes: int, kind: int, stream: int) -> None:
        if size_bytes:
            self._call(
                "cudaMemcpyAsync",
                ctypes.c_void_p(target),
                ctypes.c_void_p(source),
                ctypes.c_size_t(size_bytes),
                ctypes.c_int(kind),
                ctypes.c_void_p(stream),
            )

    def create_stream(self) -> int:
        """Return a new stream."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def synchronize(self, stream: int) -> None:
        """Wait for all that the stream has been given."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def begin_capture(self, stream: int) -> None:
        """Record what the stream is given from now on, instead of running it."""
        self._call("cudaStreamBeginCapture", ctypes.c_void_p(stream), ctypes.c_int(_THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        """Return the recorded work, ready to be launched.

        Raises:
            DeviceError: Something that was given to the stream cannot be recorded.
        """
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call(
                "cudaGraphInstantiateWithFlags",
                ctypes.byref(executable),
                graph,
                ctypes.c_ulonglong(0),
            )
        finally:
            self._call("cudaGraphDestroy", graph)
        return executable.value or 0

    def launch(self, executable: int, stream: int) -> None:
        """Run what was recorded."""
        self._call("cudaGraphLaunch", ctypes.c_void_p(executable), ctypes.c_void_p(stream))

    def destroy_executable(self, executable: int) -> None:
        """Destroy a recording."""
        self._call("cudaGraphExecDestroy", ctypes.c_void_p(executable))


class DeviceBuffer:
    """Device memory that grows and is used again.

    Args:
        cuda: Where it is taken from.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = 0
        self.size_bytes = 0

    def reserve(self, size_bytes: int) -> bool:
        """Make room for so many bytes; return whether the address has changed."""
        if self.address and size_bytes <= self.size_bytes:
            return False
        self.close()
        size_bytes = max(size_bytes, _SMALLEST_BYTES)
        self.address = self._cuda.allocate(size_bytes)
        self.size_bytes = size_bytes
        return True

    def close(self) -> None:
        """Free the memory."""
        if self.address:
            address, self.address, self.size_bytes = self.address, 0, 0
            self._cuda.free(address)
