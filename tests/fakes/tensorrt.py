"""A double of the part of TensorRT's Python API that is used. No TensorRT runs here.

It is made to be refused by: flags that a version lacks, dynamic inputs without a profile, shapes
outside of one, weights that were not marked refittable, a refit that lacks a weight (which leaves
the engine half changed), plans that are truncated, of another version or GPU. It drops what the
real parser drops: graph inputs that are initializers too. What it builds is run by ONNX Runtime.

It calls itself `tensorrt_double`, so that no record or report takes it for TensorRT. A test
compares its names and signatures with those of the real bindings (``tests/data/tensorrt_api``).
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

__name__ = "tensorrt_double"  # the library, whatever name it is imported under

__version__: str = globals().get("_version") or os.environ.get("TENSORRT_DOUBLE", "10.3.0")

_ROOT = Path(__file__).resolve().parents[2]
_API = json.loads((_ROOT / "tests/data/tensorrt_api" / f"{__version__}.json").read_text())
_TABLE = _ROOT / "lora_export/engines/data/tensorrt_operators_10.1.json"
_OPERATORS = json.loads(_TABLE.read_text())["operators"]
_MAGIC = b"DOUBLE-PLAN-1\n"
_TIMING = b"DOUBLE-TIMING-1\n"

# What a test sets: the CUDA double, weights fused with others, a refit that breaks off.
cudart: Any = None
fused: dict[str, list[str]] = {}
refit_fails_after: int | None = None
builds = 0


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

_TYPES: dict[int, tuple[str, Any]] = {
    onnx.TensorProto.FLOAT: ("FLOAT", np.float32),
    onnx.TensorProto.FLOAT16: ("HALF", np.float16),
    onnx.TensorProto.INT64: ("INT64", np.int64),
    onnx.TensorProto.INT32: ("INT32", np.int32),
    onnx.TensorProto.BOOL: ("BOOL", np.bool_),
    onnx.TensorProto.INT8: ("INT8", np.int8),
    onnx.TensorProto.UINT8: ("UINT8", np.uint8),
    onnx.TensorProto.BFLOAT16: ("BF16", np.uint16),
}
_NUMPY = dict(_TYPES.values())


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
        return int(self.size * np.dtype(_NUMPY[self.dtype.name]).itemsize)

    def _read(self) -> np.ndarray:
        raw = ctypes.string_at(self._ptr, self.nbytes)
        return np.frombuffer(raw, _NUMPY[self.dtype.name]).copy()


class Dims(tuple):  # noqa: SLOT001
    """A shape."""


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        kind = value.type.tensor_type
        self.dtype = getattr(DataType, _TYPES[kind.elem_type][0])
        self._axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
        self.is_shape_tensor = False

    @property
    def shape(self) -> Dims:
        return Dims(-1 if isinstance(axis, str) else axis for axis in self._axes)


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self._model: onnx.ModelProto | None = None
        self._refittable: set[str] = set()

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input) if self._model else 0

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output) if self._model else 0

    def get_input(self, index: int) -> ITensor:
        return ITensor(self._model.graph.input[index])

    def get_output(self, index: int) -> ITensor:
        return ITensor(self._model.graph.output[index])

    def mark_weights_refittable(self, name: str) -> bool:
        known = name in {each.name for each in self._model.graph.initializer}
        if known:
            self._refittable.add(name)
        return known


class ParserError:
    def __init__(self, text: str, name: str, operator: str) -> None:
        self._text, self._name, self._operator = text, name, operator

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return self._name

    def node_operator(self) -> str:
        return self._operator


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        found = _loaded(bytes(model), path, self._logger)
        if found is None:
            self._errors.append(ParserError("Failed to parse ONNX model from file", "", ""))
            return False
        for node in found.graph.node:
            if node.domain not in ("", "ai.onnx") or node.op_type not in _OPERATORS:
                text = f"No importer registered for op: {node.op_type}"
                self._errors.append(ParserError(text, node.name, node.op_type))
        given = {each.name for each in found.graph.initializer}
        inputs = [each for each in found.graph.input if each.name not in given]
        del found.graph.input[:]
        found.graph.input.extend(inputs)  # as ModelImporter does: an initializer is no input
        self._network._model = found
        return not self._errors


def _loaded(data: bytes, path: str | None, logger: ILogger) -> onnx.ModelProto | None:
    try:
        model = onnx.load_model_from_string(data)
        onnx.load_external_data_for_model(model, str(Path(path).parent) if path else "")
    except Exception as error:  # noqa: BLE001
        text = f"ModelImporter: {error}"
        logger.log(ILogger.ERROR, text)
        return None
    return model


class IOptimizationProfile:
    def __init__(self) -> None:
        self._ranges: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        shapes = [tuple(min), tuple(opt), tuple(max)]
        ordered = len({*map(len, shapes)}) == 1 and all(
            0 <= a <= b <= c for a, b, c in zip(*shapes, strict=True)
        )
        if not ordered:
            raise ValueError("Shape provided for min, opt or max is inconsistent with the others")
        self._ranges[input] = shapes


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._data)


class IBuilderConfig:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self._flags = {BuilderFlag.TF32}
        self._profiles: list[IOptimizationProfile] = []
        self._pools: dict[Any, int] = {}
        self._cache: ITimingCache | None = None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.progress_monitor: IProgressMonitor | None = None

    def _require(self, flag: Any) -> None:
        if not isinstance(flag, BuilderFlag):
            raise TypeError(f"{flag!r} is no BuilderFlag")

    def set_flag(self, flag: Any) -> None:
        self._require(flag)
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._require(flag)
        self._flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        self._require(flag)
        return flag in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert isinstance(pool, MemoryPoolType)
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        data = bytes(serialized_timing_cache)
        if data and not data.startswith(_TIMING):
            self._logger.log(ILogger.ERROR, "the timing cache cannot be read")
            return None
        return ITimingCache(data)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        made_by = f"{__version__} {_device()}".encode()
        if cache._data and made_by not in cache._data and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


def _device() -> str:
    return f"{cudart.name} {cudart.capability}"


class Builder:
    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        if cudart is None or not cudart.devices:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        known = sum(1 << int(each) for each in NetworkDefinitionCreationFlag)
        if flags & ~known:
            raise ValueError(f"unknown network flags {flags:#x}")
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        global builds  # noqa: PLW0603
        builds += 1
        problem = _problem(network, config)
        if problem is not None:
            self._logger.log(ILogger.ERROR, problem)
            return None
        monitor = config.progress_monitor
        if monitor is not None and not _told(monitor):
            self._logger.log(ILogger.ERROR, "the build was cancelled")
            return None
        if config._cache is not None:
            config._cache._data = _TIMING + f"{__version__} {_device()}".encode()
        return _plan(network, config)


def _told(monitor: IProgressMonitor) -> bool:
    monitor.phase_start("Building Engine", "", 3)
    going = True
    for step in range(3):
        monitor.phase_start("Timing", "Building Engine", 1)
        going = going and monitor.step_complete("Building Engine", step)
        monitor.phase_finish("Timing")
    monitor.phase_finish("Building Engine")
    return going


def _problem(network: INetworkDefinition, config: IBuilderConfig) -> str | None:
    """What a build is refused for."""
    whole = {BuilderFlag.REFIT, BuilderFlag.REFIT_IDENTICAL} & config._flags
    if BuilderFlag.REFIT_INDIVIDUAL in config._flags and whole:
        return "REFIT_INDIVIDUAL excludes REFIT and REFIT_IDENTICAL"
    if network._refittable and BuilderFlag.REFIT_INDIVIDUAL not in config._flags:
        return "weights are marked refittable without REFIT_INDIVIDUAL"
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = [each for each in tensors if -1 in each.shape]
    if dynamic and not config._profiles:
        return "Network has dynamic or shape inputs, but no optimization profile has been defined"
    for profile in config._profiles:
        for each in dynamic:
            ranges = profile._ranges.get(each.name)
            if ranges is None:
                return f"{each.name}: dynamic input is missing dimensions in profile"
            for shape in ranges:
                if len(shape) != len(each.shape) or any(
                    own not in (-1, size) for own, size in zip(each.shape, shape, strict=True)
                ):
                    return f"{each.name}: dimensions of the profile do not fit the network's"
    return None


def _plan(network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory:
    refittable = sorted(
        network._refittable | {n for w in network._refittable for n in fused.get(w, ())}
    )
    if BuilderFlag.REFIT_IDENTICAL in config._flags or BuilderFlag.REFIT in config._flags:
        refittable = sorted(each.name for each in network._model.graph.initializer)
    stripped = refittable if BuilderFlag.STRIP_PLAN in config._flags else []
    profiles = [profile._ranges for profile in config._profiles] or [{}]
    header = {
        "version": __version__,
        "device": _device(),
        "level": config.hardware_compatibility_level.name,
        "compatible": BuilderFlag.VERSION_COMPATIBLE in config._flags,
        "profiles": profiles,
        "refittable": refittable,
        "stripped": stripped,
    }
    return _packed(header, _emptied(network._model, stripped))


def _emptied(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return a model in which some weights are zeros."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for each in copied.graph.initializer:
        if each.name in names:
            zeros = np.zeros(list(each.dims), _TYPES[each.data_type][1])
            each.CopyFrom(numpy_helper.from_array(zeros, each.name))
    return copied


def _packed(header: dict[str, Any], model: onnx.ModelProto) -> IHostMemory:
    head = json.dumps(header, sort_keys=True).encode()
    body = len(head).to_bytes(8, "little") + head + model.SerializeToString(deterministic=True)
    return IHostMemory(_MAGIC + hashlib.sha256(body).digest() + body)


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
        body = data[len(_MAGIC) + 32 :]
        length = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + length])
        problem = self._unfit(header)
        if problem is not None:
            self._logger.log(ILogger.ERROR, problem)
            return None
        return ICudaEngine(header, onnx.load_model_from_string(body[8 + length :]), self._logger)

    def _unreadable(self, data: bytes) -> str | None:
        body = data[len(_MAGIC) + 32 :]
        digest = data[len(_MAGIC) : len(_MAGIC) + 32]
        if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            return "Serialization assertion failed: the plan is damaged"
        return None

    def _unfit(self, header: dict[str, Any]) -> str | None:
        if header["version"] != __version__ and not header["compatible"]:
            return f"Version mismatch: serialized with {header['version']}, this is {__version__}"
        if header["compatible"] and not self.engine_host_code_allowed:
            return "host code is not allowed: set engine_host_code_allowed"
        if header["level"] == "NONE" and header["device"] != _device():
            return f"the plan is for {header['device']}, not {_device()}"
        return None


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
        return _packed({**self._header, "stripped": names}, _emptied(self._model, names))

    def _session(self) -> Any:
        if getattr(self, "_opened", (-1,))[0] != self._version:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = 1
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
        assert stream_handle in cudart.streams
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
        assert stream_handle in cudart.streams
        if set(self._addresses) != set(self.engine._tensors) or self.infer_shapes():
            return False
        work = self._work(dict(self._addresses), dict(self._shapes))
        if stream_handle in cudart.capturing:
            cudart.capturing[stream_handle].append(work)
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
                cudart.require_inside(addresses[name], values.nbytes)
                ctypes.memmove(
                    addresses[name], np.ascontiguousarray(values).ctypes.data, values.nbytes
                )

        return run


def _read(address: int, tensor: ITensor, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(_NUMPY[tensor.dtype.name])
    count = int(np.prod(shape, dtype=np.int64))
    cudart.require_inside(address, count * dtype.itemsize)
    return np.frombuffer(ctypes.string_at(address, count * dtype.itemsize), dtype).reshape(shape)


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        if not engine.refittable:
            logger.log(ILogger.ERROR, "the engine is not refittable")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._engine, self._logger = engine, logger
        self._given: dict[str, Weights] = {}

    def get_all_weights(self) -> list[str]:
        return list(self._engine._header["refittable"])

    def get_weights_prototype(self, weights_name: str) -> Weights:
        for each in self._engine._model.graph.initializer:
            if each.name == weights_name:
                dtype = getattr(DataType, _TYPES[each.data_type][0])
                return Weights(dtype, 0, int(np.prod(each.dims, dtype=np.int64)))
        raise ValueError(weights_name)

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        if name not in self.get_all_weights():
            return False
        wanted = self.get_weights_prototype(name)
        if wanted.dtype != weights.dtype or wanted.size != weights.size:
            return False
        self._given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        needed = {n for given in self._given for n in fused.get(given, ())} | self._engine._empty
        return sorted(needed - set(self._given))

    def refit_cuda_engine(self) -> bool:
        short = bool(self.get_missing_weights())
        for done, (name, weights) in enumerate(sorted(self._given.items())):
            if (short and done) or done == refit_fails_after:
                self._logger.log(ILogger.ERROR, "the refit broke off: the engine is half changed")
                return False
            self._engine._set(name, weights._read())
        return not short


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._refitter, self._logger = refitter, logger
        self._held: list[np.ndarray] = []

    @property
    def num_errors(self) -> int:
        return 0

    def get_error(self, index: int) -> ParserError:
        raise IndexError(index)

    def refit_from_file(self, model: str) -> bool:
        found = _loaded(Path(model).read_bytes(), model, self._logger)
        if found is None:
            return False
        for each in found.graph.initializer:
            if each.name in self._refitter.get_all_weights():
                values = np.ascontiguousarray(numpy_helper.to_array(each))
                self._held.append(values)
                dtype = getattr(DataType, _TYPES[each.data_type][0])
                weights = Weights(dtype, values.ctypes.data, values.size)
                if not self._refitter.set_named_weights(each.name, weights):
                    return False
        return True
