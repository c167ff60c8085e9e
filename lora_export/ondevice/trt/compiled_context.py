"""Execution contexts of TensorRT for RTX, which compiles an engine for the GPU that loads it.

The compiled kernels are a runtime cache: it is read before the engine is compiled, and written
when there are new ones in it.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING, Any

from lora_export.ondevice.trt.runtime_cache import read_cache, write_cache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import tensorrt as trt

    from lora_export.ondevice.trt.runtime_cache import CacheKey

__all__ = ["CompiledContext", "warn"]


def warn(text: str) -> None:
    """Show a text as a `RuntimeWarning`."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)


class CompiledContext:
    """The context of one engine, and its kernels.

    Args:
        trt: The library's module.
        file: The file of the kernels.
        key: What they are good for.
        cuda_graphs: Whether the library records runs as CUDA graphs; it records again where shapes
            change.
        wait_for_kernels: Whether kernels for new shapes are compiled before they are run. By
            default the library runs slower ones until they are.
        tell: Told what costs time: kernels that are damaged, or that cannot be kept.

    Attributes:
        kept: Whether there were kernels of this plan for this GPU before.
    """

    def __init__(
        self,
        trt: Any,
        file: Path,
        key: CacheKey,
        *,
        cuda_graphs: bool = False,
        wait_for_kernels: bool = False,
        tell: Callable[[str], None] = warn,
    ) -> None:
        self._trt = trt
        self._file = file
        self._key = key
        self._cuda_graphs = cuda_graphs
        self._wait = wait_for_kernels
        self._tell = tell
        self._config: trt.IRuntimeConfig | None = None
        self._cache: trt.IRuntimeCache | None = None
        self._stored: str | None = None
        self._writable = True
        self.kept = False

    def create(self, engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
        """Return a context, compiled; None where the device has too little memory."""
        trt = self._trt
        config = engine.create_runtime_config()
        cache = config.create_runtime_cache()
        kernels = read_cache(self._file, self._key, self._tell)
        if kernels is not None and cache.deserialize(kernels):
            self._stored = hashlib.sha256(kernels).hexdigest()
            self.kept = True
        if not config.set_runtime_cache(cache):
            self._writable = False
            self._tell("the library takes no runtime cache: every start compiles again")
        if self._cuda_graphs:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._wait:
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        context = engine.create_execution_context(config)
        self._config, self._cache = config, cache
        if context is not None:
            self.keep()
        return context

    def close(self) -> None:
        """Let go of what is the library's; the context was before, the engine is afterwards."""
        self._cache = self._config = None

    def keep(self) -> None:
        """Write the kernels, where there are others than in the file.

        A disk that refuses is asked once, and told of once.
        """
        cache = self._cache
        kernels = None if cache is None else cache.serialize()
        if kernels is None or not self._writable:
            return
        data = bytes(kernels)
        digest = hashlib.sha256(data).hexdigest()
        if digest != self._stored:
            self._stored = digest
            self._writable = write_cache(self._file, self._key, data, self._tell)
