"""Weights of an engine, replaced one by one or from an ONNX file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from .api import TYPES, DataType, ILogger, Weights
from .network import ParserError, loaded

if TYPE_CHECKING:
    from .running import ICudaEngine

library: Any = sys.modules[__package__ or ""]  # its version, and what a test sets


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
                dtype = getattr(DataType, TYPES[each.data_type][0])
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
        needed = {
            n for given in self._given for n in library.fused.get(given, ())
        } | self._engine._empty
        return sorted(needed - set(self._given))

    def refit_cuda_engine(self) -> bool:
        short = bool(self.get_missing_weights())
        for done, (name, weights) in enumerate(sorted(self._given.items())):
            if (short and done) or done == library.refit_fails_after:
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
        found = loaded(Path(model).read_bytes(), model, self._logger)
        if found is None:
            return False
        for each in found.graph.initializer:
            if each.name in self._refitter.get_all_weights():
                values = np.ascontiguousarray(numpy_helper.to_array(each))
                self._held.append(values)
                dtype = getattr(DataType, TYPES[each.data_type][0])
                weights = Weights(dtype, values.ctypes.data, values.size)
                if not self._refitter.set_named_weights(each.name, weights):
                    return False
        return True
