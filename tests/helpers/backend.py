"""A double of Triton's Python backend: the module that models import, and one loaded from a folder.

The real one is met in tests/end_to_end/triton.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Backend", "Error", "Request", "Response", "loaded"]

_NUMBERS = itertools.count()


class Tensor:
    """An input or an output."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> np.ndarray:
        return self.values

    def to_dlpack(self) -> np.ndarray:
        return self.values

    @classmethod
    def from_dlpack(cls, name: str, values: np.ndarray) -> Tensor:
        return cls(name, values)


class Error:
    """The error of a refused request."""

    NOT_FOUND, INVALID_ARG, UNAVAILABLE, INTERNAL = (
        "not found",
        "invalid",
        "unavailable",
        "internal",
    )

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@dataclass
class Response:
    """An answer."""

    output_tensors: list[Tensor]
    error: Error | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        assert self.error is None, self.error.message
        (found,) = [each.values for each in self.output_tensors if each.name == name]
        return found


@dataclass
class Request:
    """A request; `adapter` names that of each row."""

    feeds: Mapping[str, np.ndarray]
    adapter: Sequence[object] | None = None
    given: str = ""

    def tensor(self, name: str) -> Tensor | None:
        if name == "adapter" and self.adapter is not None:
            column = [each.encode() if isinstance(each, str) else each for each in self.adapter]
            return Tensor(name, np.array(column, object).reshape(-1, 1))
        return Tensor(name, self.feeds[name]) if name in self.feeds else None

    def parameters(self) -> str:
        return self.given


@dataclass
class Backend:
    """A double of ``triton_python_backend_utils``.

    Attributes:
        metrics: The value of each metric, by family and adapter.
        messages: How many were sent to change metrics.
        log: What was logged.
    """

    metrics: dict[tuple[str, str], float] = field(default_factory=dict)
    messages: int = 0
    log: list[str] = field(default_factory=list)

    def module(self) -> ModuleType:
        backend = self

        class Metric:
            def __init__(self, family: str, labels: Mapping[str, str]) -> None:
                self.key = family, labels.get("adapter", "")
                backend.metrics.setdefault(self.key, 0)

            def increment(self, value: float) -> None:
                backend.metrics[self.key] += value
                backend.messages += 1

        class MetricFamily:
            COUNTER, GAUGE = "counter", "gauge"

            def __init__(self, *, name: str, description: str, kind: str) -> None:
                assert description
                assert kind in {self.COUNTER, self.GAUGE}
                self.name = name

            def Metric(self, labels: Mapping[str, str]) -> Metric:  # noqa: N802  (Triton's name)
                return Metric(self.name, labels)

        class Logger:
            log_error = staticmethod(backend.log.append)

        module = ModuleType("triton_python_backend_utils")
        module.__dict__.update(
            Tensor=Tensor, TritonError=Error, InferenceResponse=Response, Logger=Logger,
            MetricFamily=MetricFamily, TritonModelException=RuntimeError,
            get_input_tensor_by_name=lambda request, name: request.tensor(name),
        )  # fmt: skip
        return module


def loaded(version: Path, config: Mapping[str, Any], backend: Backend) -> Any:
    """Return the model of a version's folder, initialized as the server does.

    Args:
        version: The folder with ``model.py``.
        config: What of the configuration the model reads.
        backend: What it sees of Triton.
    """
    package = ModuleType(f"served_{next(_NUMBERS)}")
    package.__path__ = [str(version)]
    sys.modules[package.__name__] = package
    sys.modules["triton_python_backend_utils"] = backend.module()
    try:
        module = importlib.import_module(f"{package.__name__}.model")
    finally:
        del sys.modules["triton_python_backend_utils"]
    model = module.TritonPythonModel()
    model.initialize({
        "model_config": json.dumps(config), "model_name": "m", "model_version": version.name,
        "model_instance_kind": "CPU", "model_instance_device_id": "0",
    })  # fmt: skip
    return model
