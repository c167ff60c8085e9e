"""A double of the part of TensorRT's Python API that is used. No TensorRT runs here.

It is made to be refused by: flags that a version lacks, dynamic inputs without a profile, shapes
outside of one, weights that were not marked refittable, a refit that lacks a weight (which leaves
the engine half changed), plans that are truncated, of another version or GPU. It drops what the
real parser drops: graph inputs that are initializers too. What it builds is run by ONNX Runtime.

It is called `tensorrt_double`, so that no record or report takes it for TensorRT. A test
compares its names and signatures with those of the real bindings (``tests/data/tensorrt_api``).
With the version of TensorRT for RTX it has what that library adds, in ``rtx.py``.
"""

from __future__ import annotations

import os
from typing import Any

__version__: str = globals().get("_version") or os.environ.get("TENSORRT_DOUBLE", "10.3.0")

# What a test sets: the CUDA double, weights fused with others, a refit that breaks off.
cudart: Any = None
fused: dict[str, list[str]] = {}
refit_fails_after: int | None = None
builds = 0

# The same of TensorRT for RTX: a judgement of plans and its diagnostics, what was compiled, and how
# many runs were recorded as CUDA graphs.
validity: tuple[str, int] | None = None
compiled = 0
recorded = 0

# ruff: noqa: E402 - the parts read what is set above
from .api import (
    BuilderFlag,
    DataType,
    Dims,
    HardwareCompatibilityLevel,
    IHostMemory,
    ILogger,
    IProgressMonitor,
    ITensor,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    SerializationFlag,
    TensorIOMode,
    Weights,
)
from .building import Builder
from .network import (
    IBuilderConfig,
    INetworkDefinition,
    IOptimizationProfile,
    ITimingCache,
    OnnxParser,
    ParserError,
)
from .refitting import OnnxParserRefitter, Refitter
from .running import ICudaEngine, IExecutionContext, ISerializationConfig, Runtime

if __version__.startswith("1."):
    from . import rtx

    globals().update({name: getattr(rtx, name) for name in rtx.__all__})

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ISerializationConfig",
    "ITensor",
    "ITimingCache",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserRefitter",
    "ParserError",
    "Refitter",
    "Runtime",
    "SerializationFlag",
    "TensorIOMode",
    "Weights",
]
