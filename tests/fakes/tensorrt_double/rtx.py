"""The additions of TensorRT for RTX: builds ahead of time, validity, a runtime cache.

Kernels are compiled when a context is made, unless the runtime cache has them; `library.compiled`
counts it. A cache is refused on another GPU, behind another driver, and where it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

from . import building, network, running
from .api import IHostMemory, ILogger, _enum, _IntEnum, device

__all__ = [
    "Builder",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IRuntimeCache",
    "IRuntimeConfig",
    "Runtime",
]

library: Any = sys.modules[__package__ or ""]  # its version, and what a test sets

ComputeCapability = _enum("ComputeCapability")
CudaGraphStrategy = _enum("CudaGraphStrategy")
DynamicShapesKernelSpecializationStrategy = _enum("DynamicShapesKernelSpecializationStrategy")
EngineValidity = _enum("EngineValidity")
EngineInvalidityDiagnostics = _IntEnum(
    "EngineInvalidityDiagnostics",
    {
        "CUDA_ERROR": 64,
        "INSUFFICIENT_GPU_MEMORY": 16,
        "MALFORMED_ENGINE": 32,
        "OLD_CUDA_DRIVER": 4,
        "OLD_CUDA_RUNTIME": 8,
        "UNSUPPORTED_CC": 2,
        "VERSION_MISMATCH": 1,
    },
    module=__name__,
)

_KERNELS = b"DOUBLE-KERNELS-1\n"


class Builder(building.Builder):
    """Starts without a GPU."""

    _needs_gpu = False

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._logger)


class IBuilderConfig(network.IBuilderConfig):
    def __init__(self, logger: ILogger) -> None:
        super().__init__(logger)
        self._named: dict[int, Any] = {}
        self._count = 0

    @property
    def num_compute_capabilities(self) -> int:
        return self._count

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        self._count = count

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        assert isinstance(compute_capability, ComputeCapability)
        if not 0 <= index < self._count:
            return False
        self._named[index] = compute_capability
        return True


class IRuntimeCache:
    """Names of what was compiled; `serialize` says for what."""

    def __init__(self) -> None:
        self._compiled: set[str] = set()

    def serialize(self) -> IHostMemory:
        body = json.dumps([_place(), sorted(self._compiled)]).encode()
        return IHostMemory(_KERNELS + hashlib.sha256(body).digest() + body)

    def deserialize(self, blob: bytes) -> bool:
        data = bytes(blob)
        body = data[len(_KERNELS) + 32 :]
        whole = data[: -len(body) or None] == _KERNELS + hashlib.sha256(body).digest()
        if not whole or json.loads(body)[0] != _place():
            return False
        self._compiled = set(json.loads(body)[1])
        return True

    def reset(self) -> bool:
        self._compiled.clear()
        return True


def _place() -> list[Any]:
    return [library.__version__, device(), library.cudart.driver]


class IRuntimeConfig:
    def __init__(self) -> None:
        self._cache: IRuntimeCache | None = None
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        assert cache is None or isinstance(cache, IRuntimeCache)
        self._cache = cache
        return True


class Runtime(running.Runtime):
    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        problem, found = self._unreadable(bytes(buffer)), EngineInvalidityDiagnostics
        if problem is not None:
            self._logger.log(ILogger.INFO, problem)
            return EngineValidity.INVALID, found.MALFORMED_ENGINE.value
        if library.validity is not None:
            name, bits = library.validity
            return EngineValidity[name], bits
        header = running.header_of(bytes(buffer))
        if header["version"] != library.__version__:
            return EngineValidity.INVALID, found.VERSION_MISMATCH.value
        major, minor = library.cudart.capability
        if header["named"] and f"SM{major}{minor}" not in header["named"]:
            return EngineValidity.INVALID, found.UNSUPPORTED_CC.value
        return EngineValidity.VALID, 0

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        found = super().deserialize_cuda_engine(serialized_engine)
        return None if found is None else ICudaEngine(found._header, found._model, self._logger)

    def _unfit(self, header: dict[str, Any]) -> str | None:
        same = header["version"] == library.__version__
        return None if same else "the engine is of another release"


class ICudaEngine(running.ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(
        self, runtime_config: IRuntimeConfig | None = None
    ) -> IExecutionContext | None:
        if super().create_execution_context() is None:
            return None
        return IExecutionContext(self, runtime_config or IRuntimeConfig())


class IExecutionContext(running.IExecutionContext):
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        super().__init__(engine)
        self._config = config
        self._seen: set[str] = set()
        body = self.engine._model.SerializeToString(deterministic=True)
        self._name = hashlib.sha256(body).hexdigest()
        self._compile(self._name)

    def _compile(self, name: str) -> None:
        cache = self._config._cache
        known = self._seen if cache is None else self._seen | cache._compiled
        if name not in known:
            library.compiled += 1
        self._seen.add(name)
        if cache is not None:
            cache._compiled.add(name)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if stream_handle in library.cudart.capturing:
            return False  # not without REQUIRE_USER_ALLOCATION
        self._compile(f"{self._name} {sorted(self._shapes.items())}")
        if self._config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE:
            library.recorded += 1
        return super().execute_async_v3(stream_handle)
