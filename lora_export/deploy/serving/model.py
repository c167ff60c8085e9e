"""A base and its adapters as one model of Triton's Python backend.

Every request says its adapter in the input ``adapter`` (a string for each row; empty for the base),
or, where the response cache is off, in the request parameter of the same name: the cache's key
leaves parameters out. An unknown adapter is an error of its request alone. Adapters are added and
removed by whoever changes ``serving.json``; see ``index.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils  # Triton's own

from .index import ADAPTER_NAME, BadIndexError, Watch, locate
from .lru import ByteBudget, TooLargeError
from .probe import require_readable_tensors
from .rows import Failure, Job, run_jobs
from .runners import Runner, Settings, load_runner, open_session
from .tensors import TensorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .index import Adapter, Index

__all__ = ["TritonPythonModel"]

ADAPTER = "adapter"
BASE = "base"
ADAPTER_IDS = "adapter_ids"
FOLDER = "export"
_SHOWN = 20


class TritonPythonModel:
    """What Triton makes one of for each instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graph that adapters share, and declare the metrics."""
        require_readable_tensors()
        config = json.loads(args["model_config"])
        parameters = {key: row["string_value"] for key, row in config["parameters"].items()}
        self._name = args["model_name"]
        self._settings = _settings(args, parameters)
        self._parameter_allowed = not config.get("response_cache", {}).get("enable", False)
        self._folder = Path(__file__).parent / FOLDER
        self._watch = Watch(self._folder)
        self._budget: ByteBudget[Runner] = ByteBudget(int(parameters["cache_bytes"]))
        self._shared: Any = None
        index = self._watch.changed()
        assert index is not None  # noqa: S101  (the first look)
        self._index = index
        self._follow(index)
        self._metrics = _Metrics(self._name, args["model_version"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a batch of requests, each with its outputs or with an error of its own."""
        self._refresh()
        jobs = [self._job(request) for request in requests]
        run_jobs(jobs, self._run, mixed=self._index.way == "batched")
        self._metrics.cached(self._budget)
        return [self._response(job) for job in jobs]

    def finalize(self) -> None:
        """Let the sessions go."""
        self._shared = None
        self._budget.keep(set())

    # ------------------------------------------------------------------------------- requests

    def _job(self, request: Any) -> Job:
        try:
            index = self._index
            feeds = {
                name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in index.inputs
            }
            count = len(feeds[index.inputs[0]])
            job = Job(feeds, self._adapters(request, count))
        except Failure as failure:
            return Job({}, [], failure)
        for name in dict.fromkeys(job.adapters):
            known = index.base if name is None else name in index.adapters
            self._metrics.asked(name or BASE if known else "unknown")
            if not known and job.failure is None:
                job.failure = self._unknown(name)
        return job

    def _adapters(self, request: Any, count: int) -> list[str | None]:
        """Return the adapter of each row, as the input or the parameter says."""
        tensor = pb_utils.get_input_tensor_by_name(request, ADAPTER)
        parameter = json.loads(request.parameters() or "{}").get(ADAPTER)
        if tensor is None:
            names: list[object] = [parameter] * count
        else:
            names = tensor.as_numpy().reshape(-1).tolist()
        if parameter is not None:
            if not self._parameter_allowed:
                text = "the response cache leaves parameters out: name the adapter by the input"
                raise Failure("INVALID_ARG", f"{text} {ADAPTER!r}")
            if tensor is not None and any(_text(name) != _text(parameter) for name in names):
                text = f"the parameter {ADAPTER!r} and the input {ADAPTER!r} differ"
                raise Failure("INVALID_ARG", text)
        if len(names) == 1:
            names *= count
        if len(names) != count:
            text = f"{ADAPTER!r} has {len(names)} name(s), the batch has {count} row(s)"
            raise Failure("INVALID_ARG", text)
        return [_text(name) or None for name in names]

    def _unknown(self, name: str | None) -> Failure:
        index = self._index
        known = sorted(index.adapters)
        listed = ", ".join(known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "")
        if name is None:
            text = "the base has no head of its own: name an adapter"
            return Failure("INVALID_ARG", f"{text}; there are: {listed or 'none'}")
        shown = name if ADAPTER_NAME.fullmatch(name) else repr(name[:64])
        return Failure("NOT_FOUND", f"there is no adapter {shown}; there are: {listed or 'none'}")

    def _response(self, job: Job) -> Any:
        if job.failure is not None:
            code = getattr(pb_utils.TritonError, job.failure.kind)
            error = pb_utils.TritonError(str(job.failure), code)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        tensors = [
            pb_utils.Tensor(name, np.ascontiguousarray(values))
            for name, values in zip(self._index.outputs, job.outputs, strict=True)
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    # -------------------------------------------------------------------------------- running

    def _run(self, adapters: Sequence[str | None], feeds: Mapping[str, Any]) -> list[Any]:
        """Run rows that belong together; whatever goes wrong is a `Failure`."""
        index = self._index
        try:
            if index.way == "batched":
                return self._run_mixed(adapters, feeds)
            return self._runner(adapters[0]).run(index.outputs, feeds)
        except FileNotFoundError as error:
            self._refresh()  # removed since the batch began?
            if adapters[0] is not None:
                self._line(adapters[0])
            raise Failure("UNAVAILABLE", f"a file of adapter {adapters[0]} is missing") from error
        except TooLargeError as error:
            raise Failure("UNAVAILABLE", f"adapter {adapters[0]}: {error}") from error
        except (TensorError, BadIndexError) as error:
            raise Failure("INTERNAL", f"adapter {adapters[0]}: {error}") from error
        except Failure:
            raise
        except Exception as error:  # ONNX Runtime's have no class of their own
            text = (str(error).splitlines() or [""])[0]
            raise Failure("INVALID_ARG", f"the graph refuses these inputs: {text}") from error

    def _run_mixed(self, adapters: Sequence[str | None], feeds: Mapping[str, Any]) -> list[Any]:
        index = self._index
        lines = [None if name is None else self._line(name) for name in adapters]
        ids = np.array([0 if line is None else line.row for line in lines], np.int64)
        runner = Runner(self._shared, {}, self._settings)
        outputs = runner.run(index.outputs, {**feeds, ADAPTER_IDS: ids})
        widths = {None if line is None else line.width for line in lines}
        if len(widths) == 1 and (width := widths.pop()) is not None:
            outputs[0] = outputs[0][..., :width]  # the logits that these adapters have
        return outputs

    def _runner(self, name: str | None) -> Runner:
        index = self._index
        if name is None:
            return Runner(self._base(), {}, self._settings)
        adapter = self._line(name)

        def load() -> Runner:
            return load_runner(
                self._folder, index, name, shared=self._shared, settings=self._settings
            )

        return self._budget.get((name, adapter.file), adapter.nbytes, load)

    def _line(self, name: str) -> Adapter:
        """Return an adapter's line of the index, which may be another one than a moment ago."""
        if name not in self._index.adapters:
            raise self._unknown(name)
        return self._index.adapters[name]

    def _base(self) -> Any:
        """Return the session that adapters share; that of a base beside them opens when asked."""
        if self._shared is None:
            self._shared = open_session(locate(self._folder, self._index.graph), self._settings)
        return self._shared

    def _refresh(self) -> None:
        """Follow the index; while a new one cannot be followed, the old one stays in force."""
        try:
            index = self._watch.changed()
            if index is not None:
                self._follow(index)
        except Exception as error:  # noqa: BLE001  (ONNX Runtime's have no class of their own)
            pb_utils.Logger.log_error(f"{self._name}: {error}; the adapters stay as they were")

    def _follow(self, index: Index) -> None:
        """Serve what `index` says: a new graph is opened first, then adapters are forgotten."""
        if self._shared is None or index.graph != self._index.graph:
            shared = None
            if index.way in {"swappable", "batched"}:
                shared = open_session(locate(self._folder, index.graph), self._settings)
            self._shared = shared
        self._index = index
        self._budget.keep({(name, each.file) for name, each in index.adapters.items()})


class _Metrics:
    """Requests by adapter, adapters loaded, and what the loaded ones take."""

    def __init__(self, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        kind = pb_utils.MetricFamily
        self._requests = kind(
            name="lora_export_adapter_requests_total",
            description="Requests that named the adapter",
            kind=kind.COUNTER,
        )
        self._loads_family = kind(
            name="lora_export_adapter_loads_total",
            description="Adapters loaded into the cache",
            kind=kind.COUNTER,
        )
        self._bytes_family = kind(
            name="lora_export_adapter_cached_bytes",
            description="Bytes that loaded adapters take",
            kind=kind.GAUGE,
        )
        self._loads = self._loads_family.Metric(labels=self._labels)
        self._bytes = self._bytes_family.Metric(labels=self._labels)
        self._by_adapter: dict[str, Any] = {}
        self._told = 0

    def asked(self, adapter: str) -> None:
        """Count a request."""
        if adapter not in self._by_adapter:
            labels = {**self._labels, "adapter": adapter}
            self._by_adapter[adapter] = self._requests.Metric(labels=labels)
        self._by_adapter[adapter].increment(1)

    def cached(self, budget: ByteBudget[Runner]) -> None:
        """Tell what the budget holds."""
        if budget.loads > self._told:
            self._loads.increment(budget.loads - self._told)
            self._told = budget.loads
        self._bytes.set(budget.used_bytes)


def _settings(args: Mapping[str, str], parameters: Mapping[str, str]) -> Settings:
    on_gpu = args["model_instance_kind"] == "GPU"
    provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
    return Settings(provider, int(args["model_instance_device_id"]), int(parameters["threads"]))


def _text(name: object) -> str:
    if name is None:
        return ""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return "" if text == BASE else text
