"""Plans that are opened, and the contexts that run them."""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime

from .api import NUMPY, Dims, IHostMemory, ILogger, ITensor, SerializationFlag, TensorIOMode, device
from .building import MAGIC, emptied, packed

library: Any = sys.modules[__package__ or ""]  # its version, and what a test sets


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        data = bytes(serialized_engine)
        problem = self._unreadable(data)
        if problem is not None:
            self._logger.log(ILogger.ERROR, problem)
            return None
        body = data[len(MAGIC) + 32 :]
        length = int.from_bytes(body[:8], "little")
        header = header_of(data)
        problem = self._unfit(header)
        if problem is not None:
            self._logger.log(ILogger.ERROR, problem)
            return None
        return ICudaEngine(header, onnx.load_model_from_string(body[8 + length :]), self._logger)

    def _unreadable(self, data: bytes) -> str | None:
        body = data[len(MAGIC) + 32 :]
        digest = data[len(MAGIC) : len(MAGIC) + 32]
        if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
            return "Serialization assertion failed: the plan is damaged"
        return None

    def _unfit(self, header: dict[str, Any]) -> str | None:
        if header["version"] != library.__version__ and not header["compatible"]:
            own = library.__version__
            return f"Version mismatch: serialized with {header['version']}, this is {own}"
        if header["compatible"] and not self.engine_host_code_allowed:
            return "host code is not allowed: set engine_host_code_allowed"
        if header["level"] == "NONE" and header["device"] != device():
            return f"the plan is for {header['device']}, not {device()}"
        return None


def header_of(plan: bytes) -> dict[str, Any]:
    """Return what a plan says of itself."""
    body = plan[len(MAGIC) + 32 :]
    return json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])


class ISerializationConfig:
    def __init__(self, stripped: bool) -> None:
        self._flags = {SerializationFlag.EXCLUDE_WEIGHTS} if stripped else set()

    def set_flag(self, flag: Any) -> bool:
        self._flags.add(flag)
        return True

    def clear_flag(self, flag: Any) -> bool:
        assert isinstance(flag, SerializationFlag)
        self._flags.discard(flag)
        return True

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags


class ICudaEngine:
    def __init__(self, header: dict[str, Any], model: onnx.ModelProto, logger: ILogger) -> None:
        self._header, self._model, self._logger = header, model, logger
        self._tensors = {
            each.name: ITensor(each) for each in (*model.graph.input, *model.graph.output)
        }
        self._ins = {each.name for each in model.graph.input}
        self._version = 0
        self._empty = set(header["stripped"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._header["profiles"])

    @property
    def refittable(self) -> bool:
        return bool(self._header["refittable"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self._ins else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name].dtype

    def get_tensor_shape(self, name: str) -> Dims:
        return self._tensors[name].shape

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        assert name in self._ins
        ranges = self._header["profiles"][profile_index].get(name)
        return [Dims(each) for each in ranges] if ranges else [self._tensors[name].shape] * 3

    def create_execution_context(self) -> IExecutionContext | None:
        if self._empty:
            text = f"the weights are missing: {min(self._empty)}"
            self._logger.log(ILogger.ERROR, text)
            return None
        return IExecutionContext(self)

    def create_serialization_config(self) -> ISerializationConfig:
        return ISerializationConfig(bool(self._header["stripped"]))

    def serialize(self) -> IHostMemory:
        return self.serialize_with_config(self.create_serialization_config())

    def serialize_with_config(self, arg0: ISerializationConfig) -> IHostMemory:
        without = arg0.get_flag(SerializationFlag.EXCLUDE_WEIGHTS)
        names = self._header["refittable"] if without else sorted(self._empty)
        return packed({**self._header, "stripped": names}, emptied(self._model, names))

    def _session(self) -> Any:
        if getattr(self, "_opened", (-1,))[0] != self._version:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = 1
            # TensorRT dequantizes weights and rounds nothing else
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
            session = onnxruntime.InferenceSession(
                self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            self._opened = (self._version, session)
        return self._opened[1]

    def _set(self, name: str, values: np.ndarray) -> None:
        for each in self._model.graph.initializer:
            if each.name == name:
                shaped = values.reshape(list(each.dims))
                each.raw_data = shaped.tobytes()
                for field in ("float_data", "int32_data", "int64_data"):
                    each.ClearField(field)
        self._empty.discard(name)
        self._version += 1


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in library.cudart.streams
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return False
        self._profile = profile_index
        self._shapes = {}
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self._profile)
        shape = tuple(shape)
        fits = len(shape) == len(low) and all(
            a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
        )
        if fits:
            self._shapes[name] = shape
        else:
            text = f"{name}: {shape} is outside of profile {self._profile}"
            self.engine._logger.log(ILogger.ERROR, text)
        return fits

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine._ins if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> Dims:
        if name in self.engine._ins:
            return Dims(self._shapes.get(name, self.engine.get_tensor_shape(name)))
        sizes: dict[str, int] = {}
        for each, shape in self._shapes.items():
            named = zip(self.engine._tensors[each]._axes, shape, strict=True)
            sizes |= {axis: size for axis, size in named if isinstance(axis, str)}
        if "total_sequence" not in sizes and {"sequence", "past_sequence"} <= set(sizes):
            sizes["total_sequence"] = sizes["sequence"] + sizes["past_sequence"]
        return Dims(
            sizes.get(axis, -1) if isinstance(axis, str) else axis
            for axis in self.engine._tensors[name]._axes
        )

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if not memory:
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle in library.cudart.streams
        if set(self._addresses) != set(self.engine._tensors) or self.infer_shapes():
            return False
        work = self._work(dict(self._addresses), dict(self._shapes))
        if stream_handle in library.cudart.capturing:
            library.cudart.capturing[stream_handle].append(work)
        else:
            work()
        return True

    def _work(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> Any:
        engine = self.engine

        def run() -> None:
            feeds = {
                name: _read(addresses[name], engine._tensors[name], shapes[name]) for name in shapes
            }
            names = [each.name for each in engine._model.graph.output]
            for name, values in zip(names, engine._session().run(names, feeds), strict=True):
                library.cudart.require_inside(addresses[name], values.nbytes)
                ctypes.memmove(
                    addresses[name], np.ascontiguousarray(values).ctypes.data, values.nbytes
                )

        return run


def _read(address: int, tensor: ITensor, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(NUMPY[tensor.dtype.name])
    count = int(np.prod(shape, dtype=np.int64))
    library.cudart.require_inside(address, count * dtype.itemsize)
    return np.frombuffer(ctypes.string_at(address, count * dtype.itemsize), dtype).reshape(shape)
