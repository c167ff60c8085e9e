"""Builds, and the plans that they write: a header, and the model that ONNX Runtime runs."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from .api import (
    TYPES,
    BuilderFlag,
    IHostMemory,
    ILogger,
    IProgressMonitor,
    NetworkDefinitionCreationFlag,
    device,
)
from .network import TIMING, IBuilderConfig, INetworkDefinition, IOptimizationProfile

library: Any = sys.modules[__package__ or ""]  # its version, and what a test sets


MAGIC = b"DOUBLE-PLAN-1\n"


class Builder:
    _needs_gpu = True

    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        if self._needs_gpu and (library.cudart is None or not library.cudart.devices):
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
        library.builds += 1
        problem = _problem(network, config)
        if problem is not None:
            self._logger.log(ILogger.ERROR, problem)
            return None
        monitor = config.progress_monitor
        if monitor is not None and not _told(monitor):
            self._logger.log(ILogger.ERROR, "the build was cancelled")
            return None
        if config._cache is not None:
            config._cache._data = TIMING + f"{library.__version__} {device()}".encode()
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
    """The reasons for which a build is refused."""
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
        network._refittable | {n for w in network._refittable for n in library.fused.get(w, ())}
    )
    if BuilderFlag.REFIT_IDENTICAL in config._flags or BuilderFlag.REFIT in config._flags:
        refittable = sorted(each.name for each in network._model.graph.initializer)
    stripped = refittable if BuilderFlag.STRIP_PLAN in config._flags else []
    profiles = [profile._ranges for profile in config._profiles] or [{}]
    header = {
        "version": library.__version__,
        "device": device(),
        "named": [each.name for each in getattr(config, "_named", {}).values()],
        "level": config.hardware_compatibility_level.name,
        "compatible": BuilderFlag.VERSION_COMPATIBLE in config._flags,
        "profiles": profiles,
        "refittable": refittable,
        "stripped": stripped,
    }
    return packed(header, emptied(network._model, stripped))


def emptied(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return a model in which some weights are zeros."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for each in copied.graph.initializer:
        if each.name in names:
            zeros = np.zeros(list(each.dims), TYPES[each.data_type][1])
            each.CopyFrom(numpy_helper.from_array(zeros, each.name))
    return copied


def packed(header: dict[str, Any], model: onnx.ModelProto) -> IHostMemory:
    head = json.dumps(header, sort_keys=True).encode()
    body = len(head).to_bytes(8, "little") + head + model.SerializeToString(deterministic=True)
    return IHostMemory(MAGIC + hashlib.sha256(body).digest() + body)
