"""A double of libcudart: host memory stands for the device's. No CUDA runs here.

It is as strict as C is careless: arguments have to be ctypes values of the declared type, addresses
have to lie in memory that was allocated and not freed, copies have to fit.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from typing import Any

__all__ = ["DoubleCudart"]

_INVALID = 1
_NO_MEMORY = 2
_NOT_PERMITTED = 800
_MEMORY_BYTES = 8 << 30


def _of(argument: Any, kind: type) -> Any:
    assert isinstance(argument, kind), f"{argument!r} is passed where {kind.__name__} is declared"
    return argument.value


def _pointed(argument: Any, kind: type) -> Any:
    target = argument._obj  # what ctypes.byref holds
    assert isinstance(target, kind), f"a pointer to {type(target).__name__}, not {kind.__name__}"
    return target


class DoubleCudart:
    """A double of libcudart, returned by `ctypes.CDLL`.

    Attributes:
        name, capability, devices: What the device is said to be.
        driver: The CUDA that its driver is for, as the driver says it.
        limit_bytes: How much can be allocated.
        capturing: Recordings under way: stream → the work it was given.
        launches: How many recordings were replayed.
    """

    def __init__(self) -> None:
        self.name = "Orin (double)"
        self.capability = (8, 7)
        self.devices = 1
        self.driver = 12060  # for CUDA 12.6
        self.limit_bytes = _MEMORY_BYTES
        self.allocated: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.streams: set[int] = set()
        self.capturing: dict[int, list[Any]] = {}
        self.executables: dict[int, list[Any]] = {}
        self.launches = 0
        self._next = 0x1000
        self.cudaGetErrorString = _ErrorString()

    # -- what the double of TensorRT asks -----------------------------------------------------

    def require_inside(self, address: int, size_bytes: int) -> None:
        """Require that a range lies in one allocation."""
        starts = sorted(self.allocated)
        at = bisect_right(starts, address) - 1
        inside = at >= 0 and address + size_bytes <= starts[at] + len(self.allocated[starts[at]])
        assert inside, f"{size_bytes} bytes at {address:#x} are outside every allocation"

    def used_bytes(self) -> int:
        return sum(map(len, self.allocated.values()))

    # -- the functions of the library ---------------------------------------------------------

    def cudaGetDeviceCount(self, count: Any) -> int:  # noqa: N802
        _pointed(count, ctypes.c_int).value = self.devices
        return 0 if self.devices else 100

    def cudaGetDevice(self, device: Any) -> int:  # noqa: N802
        _pointed(device, ctypes.c_int).value = 0
        return 0

    def cudaDeviceGetAttribute(self, value: Any, attribute: Any, device: Any) -> int:  # noqa: N802
        number = _of(attribute, ctypes.c_int)
        assert _of(device, ctypes.c_int) == 0
        _pointed(value, ctypes.c_int).value = {75: self.capability[0], 76: self.capability[1]}[
            number
        ]
        return 0

    def cudaGetDeviceProperties_v2(self, properties: Any, device: Any) -> int:  # noqa: N802
        assert _of(device, ctypes.c_int) == 0
        assert len(properties) >= 1008
        properties.value = self.name.encode()
        return 0

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:  # noqa: N802
        _pointed(free, ctypes.c_size_t).value = self.limit_bytes - self.used_bytes()
        _pointed(total, ctypes.c_size_t).value = self.limit_bytes
        return 0

    def cudaDriverGetVersion(self, value: Any) -> int:  # noqa: N802
        _pointed(value, ctypes.c_int).value = self.driver
        return 0

    def cudaRuntimeGetVersion(self, value: Any) -> int:  # noqa: N802
        _pointed(value, ctypes.c_int).value = 12060
        return 0

    def cudaMalloc(self, pointer: Any, size: Any) -> int:  # noqa: N802
        size_bytes = _of(size, ctypes.c_size_t)
        if self.used_bytes() + size_bytes > self.limit_bytes:
            return _NO_MEMORY
        block = ctypes.create_string_buffer(b"\xa5" * size_bytes, size_bytes)
        address = ctypes.addressof(block)
        self.allocated[address] = block
        _pointed(pointer, ctypes.c_void_p).value = address
        return 0

    def cudaFree(self, address: Any) -> int:  # noqa: N802
        return (
            0 if self.allocated.pop(_of(address, ctypes.c_void_p), None) is not None else _INVALID
        )

    def cudaMemcpyAsync(  # noqa: N802
        self, target: Any, source: Any, size: Any, kind: Any, stream: Any
    ) -> int:
        to, start = _of(target, ctypes.c_void_p), _of(source, ctypes.c_void_p)
        count, way = _of(size, ctypes.c_size_t), _of(kind, ctypes.c_int)
        assert way in (1, 2)
        if _of(stream, ctypes.c_void_p) in self.capturing:
            return _NOT_PERMITTED  # memory of the host that is not pinned
        self.require_inside(to if way == 1 else start, count)
        ctypes.memmove(to, start, count)
        return 0

    def _handle(self) -> int:
        self._next += 0x10
        return self._next

    def cudaStreamCreate(self, stream: Any) -> int:  # noqa: N802
        handle = self._handle()
        self.streams.add(handle)
        _pointed(stream, ctypes.c_void_p).value = handle
        return 0

    def cudaStreamDestroy(self, stream: Any) -> int:  # noqa: N802
        self.streams.remove(_of(stream, ctypes.c_void_p))
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        handle = _of(stream, ctypes.c_void_p)
        assert handle in self.streams
        return _NOT_PERMITTED if handle in self.capturing else 0

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> int:  # noqa: N802
        assert _of(mode, ctypes.c_int) in (0, 1, 2)
        self.capturing[_of(stream, ctypes.c_void_p)] = []
        return 0

    def cudaStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802
        handle = self._handle()
        self.executables[handle] = self.capturing.pop(_of(stream, ctypes.c_void_p))
        _pointed(graph, ctypes.c_void_p).value = handle
        return 0

    def cudaGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:  # noqa: N802
        assert _of(flags, ctypes.c_ulonglong) == 0
        handle = self._handle()
        self.executables[handle] = list(self.executables[_of(graph, ctypes.c_void_p)])
        _pointed(executable, ctypes.c_void_p).value = handle
        return 0

    def cudaGraphDestroy(self, graph: Any) -> int:  # noqa: N802
        del self.executables[_of(graph, ctypes.c_void_p)]
        return 0

    def cudaGraphExecDestroy(self, executable: Any) -> int:  # noqa: N802
        del self.executables[_of(executable, ctypes.c_void_p)]
        return 0

    def cudaGraphLaunch(self, executable: Any, stream: Any) -> int:  # noqa: N802
        assert _of(stream, ctypes.c_void_p) in self.streams
        for work in self.executables[_of(executable, ctypes.c_void_p)]:
            work()
        self.launches += 1
        return 0


class _ErrorString:
    """``cudaGetErrorString``, whose ``restype`` the caller sets."""

    restype: Any = None

    def __call__(self, status: Any) -> bytes:
        assert self.restype is ctypes.c_char_p
        texts = {_INVALID: b"invalid argument", _NO_MEMORY: b"out of memory"}
        return texts.get(_of(status, ctypes.c_int), b"unknown error")
