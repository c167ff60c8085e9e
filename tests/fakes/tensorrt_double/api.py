"""Shared parts of the double: the enums of the version, logs, values, tensors."""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

library: Any = sys.modules[__package__ or ""]  # its version, and what a test sets


_ROOT = Path(__file__).resolve().parents[3]


_API = json.loads((_ROOT / "tests/data/tensorrt_api" / f"{library.__version__}.json").read_text())


def _enum(name: str) -> Any:
    return enum.Enum(
        name, {each: at for at, each in enumerate(_API["enums"][name])}, module=__name__
    )  # type: ignore[misc]


class _IntEnum(enum.Enum):
    def __int__(self) -> int:
        return int(self.value)


def _int_enum(name: str) -> Any:
    return _IntEnum(
        name, {each: at for at, each in enumerate(_API["enums"][name])}, module=__name__
    )  # type: ignore[call-overload]


BuilderFlag = _enum("BuilderFlag")


DataType = _enum("DataType")


HardwareCompatibilityLevel = _enum("HardwareCompatibilityLevel")


MemoryPoolType = _enum("MemoryPoolType")


NetworkDefinitionCreationFlag = _int_enum("NetworkDefinitionCreationFlag")


SerializationFlag = _enum("SerializationFlag")


TensorIOMode = _enum("TensorIOMode")


TYPES: dict[int, tuple[str, Any]] = {
    onnx.TensorProto.FLOAT: ("FLOAT", np.float32),
    onnx.TensorProto.FLOAT16: ("HALF", np.float16),
    onnx.TensorProto.INT64: ("INT64", np.int64),
    onnx.TensorProto.INT32: ("INT32", np.int32),
    onnx.TensorProto.BOOL: ("BOOL", np.bool_),
    onnx.TensorProto.INT8: ("INT8", np.int8),
    onnx.TensorProto.UINT8: ("UINT8", np.uint8),
    onnx.TensorProto.BFLOAT16: ("BF16", np.uint16),
}


NUMPY = dict(TYPES.values())


class ILogger:
    """To be subclassed; `log` is called with what happens."""

    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def log(self, severity: Severity, msg: str) -> None:
        raise TypeError("ILogger.log is pure virtual")


class IProgressMonitor:
    """To be subclassed."""

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        raise TypeError("pure virtual")

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise TypeError("pure virtual")

    def phase_finish(self, phase_name: str) -> None:
        raise TypeError("pure virtual")


class IHostMemory(bytes):
    """A buffer."""

    @property
    def nbytes(self) -> int:
        return len(self)


class Weights:
    """Values at an address: nothing is copied."""

    def __init__(self, type: Any, ptr: int, count: int) -> None:  # noqa: A002
        self.dtype = type
        self.size = count
        self._ptr = ptr

    @property
    def nbytes(self) -> int:
        return int(self.size * np.dtype(NUMPY[self.dtype.name]).itemsize)

    def _read(self) -> np.ndarray:
        raw = ctypes.string_at(self._ptr, self.nbytes)
        return np.frombuffer(raw, NUMPY[self.dtype.name]).copy()


class Dims(tuple):  # noqa: SLOT001
    """A shape."""


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        kind = value.type.tensor_type
        self.dtype = getattr(DataType, TYPES[kind.elem_type][0])
        self._axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
        self.is_shape_tensor = False

    @property
    def shape(self) -> Dims:
        return Dims(-1 if isinstance(axis, str) else axis for axis in self._axes)


def device() -> str:
    return f"{library.cudart.name} {library.cudart.capability}"
