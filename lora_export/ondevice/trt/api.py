"""A library with TensorRT's API: imported here, its version checked, its messages kept."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.libraries import TENSORRT, library_of, library_row
from lora_export.ondevice.trt.versions import Version, parse_version

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = [
    "Log",
    "array_of",
    "import_library",
    "import_tensorrt",
    "numpy_dtype",
    "version_of",
]

_KEPT: Final = 20


def import_library(name: str) -> Any:
    """Return the module of a library of `LIBRARIES`.

    A name that is not in the table is that of a library that stands in TensorRT's place: what is
    installed as TensorRT is imported.

    Raises:
        DeviceError: It is not installed, cannot be loaded, or is of a version that is not
            supported.
    """
    row = library_row(name)
    try:
        module = importlib.import_module(row.module)
    except ImportError as error:
        msg = f"{row.title} is not installed: {error}"
        raise DeviceError(msg, hint=row.install, kind="missing") from error
    except Exception as error:  # a broken installation raises what it likes
        msg = f"{row.title} cannot be loaded: {type(error).__name__}: {error}"
        raise DeviceError(msg, hint=row.install, kind="missing") from error
    version_of(module)
    return module


def import_tensorrt() -> Any:
    """Return the module `tensorrt`; see `import_library`."""
    return import_library(TENSORRT)


def version_of(module: Any) -> Version:
    """Return major and minor of a module with TensorRT's API; refuse what is not supported."""
    return parse_version(str(getattr(module, "__version__", "")), library_of(module))


class Log:
    """The last messages of a library that tell of trouble, since this was made.

    Args:
        trt: The library's module.

    Attributes:
        module: The same.
        logger: What TensorRT is given.
    """

    def __init__(self, trt: Any) -> None:
        self._kept: list[str] = []
        self.module = trt
        self.logger: Any = _logger_of(trt, self)

    def keep(self, message: str) -> None:
        """Keep a message; called by the logger."""
        self._kept.append(message)
        del self._kept[:-_KEPT]

    def last_message(self) -> str:
        """Return the last thing that TensorRT said."""
        return self._kept[-1].strip() if self._kept else "TensorRT gives no reason"


_LOGGERS: Final[WeakKeyDictionary[Any, tuple[Any, WeakSet[Log]]]] = WeakKeyDictionary()
"""The logger of each library, and those that listen.

A library keeps to the first logger that it is given, as long as anything made with it lives, and
ignores others with a warning (tried with TensorRT for RTX 1.7.1). So there is one in a process.
"""


def _logger_of(trt: Any, log: Log) -> Any:
    """Return the logger of a library, which `log` listens to from now on."""
    found = _LOGGERS.get(trt)
    if found is None:
        listeners: WeakSet[Log] = WeakSet()

        class _Logger(trt.ILogger):  # type: ignore[misc]
            """Passes warnings and errors on; prints nothing."""

            def log(self, severity: Any, msg: str) -> None:
                """Pass a message on; called by TensorRT."""
                if severity in _troubles:
                    for each in tuple(listeners):
                        each.keep(msg)

        _troubles = (
            trt.ILogger.INTERNAL_ERROR,
            trt.ILogger.ERROR,
            trt.ILogger.WARNING,
        )
        found = _LOGGERS[trt] = (_Logger(), listeners)
    found[1].add(log)
    return found[0]


_BFLOAT16: Final = "bfloat16"
_DTYPES: Final = {
    "FLOAT": ("float32", "f4"),
    "HALF": ("float16", "f2"),
    "BF16": (_BFLOAT16, "u2"),
    "INT64": ("int64", "i8"),
    "INT32": ("int32", "i4"),
    "INT8": ("int8", "i1"),
    "UINT8": ("uint8", "u1"),
    "BOOL": ("bool", "?"),
}
"""Our name, and NumPy's dtype of the same size, by the member of TensorRT's ``DataType``."""


def numpy_dtype(dtype: trt.DataType) -> tuple[str, np.dtype[Any]]:
    """Return our name of a dtype, and NumPy's dtype of the same size.

    NumPy has no bfloat16: there it is ``uint16``, the bits.

    Raises:
        DeviceError: It is none that a graph of ours has.
    """
    row = _DTYPES.get(dtype.name)
    if row is None:
        msg = f"a tensor of TensorRT's {dtype} is not handled"
        raise DeviceError(msg, kind="unsupported")
    return row[0], np.dtype(row[1])


def array_of(values: np.ndarray[Any, Any], name: str, dtype: trt.DataType) -> np.ndarray[Any, Any]:
    """Return values as the bytes that TensorRT takes for a dtype, contiguous.

    Integers change their width where they fit; float32 is rounded to bfloat16, half to even; two
    bytes of another package's bfloat16 are taken as they are.

    Args:
        values: The values.
        name: The tensor's name, for the error.
        dtype: TensorRT's dtype of it.

    Raises:
        DeviceError: The values are of another kind.
    """
    ours, wanted = numpy_dtype(dtype)
    given = np.asarray(values)
    if ours == _BFLOAT16:
        if given.dtype == np.float32:
            return to_bfloat16(given)
        if given.dtype.itemsize == wanted.itemsize and given.dtype.kind in "Vu":
            return np.ascontiguousarray(given).view(wanted)
    elif given.dtype == wanted:
        return _contiguous(given)
    elif given.dtype.kind == "i" and wanted.kind == "i":
        narrowed = given.astype(wanted)
        if np.array_equal(narrowed, given):
            return _contiguous(narrowed)
        msg = f"{name!r} holds integers that are too large for {ours}"
        raise DeviceError(msg, kind="usage")
    msg = f"{name!r} is {given.dtype}, the engine reads {ours}"
    raise DeviceError(msg, kind="usage")


def _contiguous(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a C-contiguous array of the same shape, scalars included."""
    return values if values.flags["C_CONTIGUOUS"] else np.array(values, order="C")


def to_bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the bits of float32 values rounded to bfloat16, half to even."""
    bits = np.array(values, np.float32, order="C").view(np.uint32)
    rounded = (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(
        16
    )
    quiet = ((bits >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16)
    return np.where(np.isnan(values), quiet, rounded.astype(np.uint16))


def from_bfloat16(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return bfloat16 bits as float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
