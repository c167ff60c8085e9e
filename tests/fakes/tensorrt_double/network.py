"""Networks, parsed from ONNX, and the profiles and settings of a build."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx

from .api import (
    _ROOT,
    BuilderFlag,
    HardwareCompatibilityLevel,
    IHostMemory,
    ILogger,
    IProgressMonitor,
    ITensor,
    MemoryPoolType,
    device,
)

library: Any = sys.modules[__package__ or ""]  # its version, and what a test sets


_TABLE = _ROOT / "lora_export/engines/data/tensorrt_operators_10.1.json"


_OPERATORS = json.loads(_TABLE.read_text())["operators"]


TIMING = b"DOUBLE-TIMING-1\n"


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self._model: onnx.ModelProto | None = None
        self._refittable: set[str] = set()

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input) if self._model else 0

    @property
    def num_layers(self) -> int:
        return 0  # what is computed is the graph itself, by ONNX Runtime

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
    def __init__(self, text: str, name: str, operator: str, at: int = -1) -> None:
        self._text, self._name, self._operator, self._at = text, name, operator, at

    def node(self) -> int:
        return self._at

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
        found = loaded(bytes(model), path, self._logger)
        if found is None:
            self._errors.append(ParserError("Failed to parse ONNX model from file", "", ""))
            return False
        for at, node in enumerate(found.graph.node):
            if node.domain not in ("", "ai.onnx") or node.op_type not in _OPERATORS:
                text = f"No importer registered for op: {node.op_type}"
                self._errors.append(ParserError(text, node.name, node.op_type, at))
        given = {each.name for each in found.graph.initializer}
        inputs = [each for each in found.graph.input if each.name not in given]
        del found.graph.input[:]
        found.graph.input.extend(inputs)  # as ModelImporter does: an initializer is not an input
        self._network._model = found
        return not self._errors


def loaded(data: bytes, path: str | None, logger: ILogger) -> onnx.ModelProto | None:
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
            raise TypeError(f"{flag!r} is not a BuilderFlag")

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
        if data and not data.startswith(TIMING):
            self._logger.log(ILogger.ERROR, "the timing cache cannot be read")
            return None
        return ITimingCache(data)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        made_by = f"{library.__version__} {device()}".encode()
        if cache._data and made_by not in cache._data and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache
