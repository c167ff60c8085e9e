"""A base and its adapters as one model of Triton's Python backend.

Every request says its adapter in the input ``adapter`` (a string for each row; empty for the base),
or, where the response cache is off, in the request parameter of the same name: the cache's key
leaves parameters out. An unknown adapter is an error of its request alone. Adapters are added and
removed by whoever changes ``serving.json``; see ``index.py``.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils  # Triton's own

from .index import ADAPTER_NAME, BadIndexError, Watch, locate
from .lru import ByteBudget, TooLargeError
from .metrics import Metrics
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
    """The model; Triton makes one for each instance."""

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
        self._index: Any = None
        index = self._watch.changed()
        while index is not None:
            try:
                self._follow(index)
                break
            except Exception:  # ONNX Runtime's have no class of their own
                index = self._watch.changed()  # its files may have gone for those of a newer one
                if index is None:
                    raise
        self._metrics = Metrics(self._name, args["model_version"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a batch of requests, each with its outputs or with an error of its own."""
        self._refresh()
        jobs = [self._job(request) for request in requests]
        self._metrics.count_requests(each for job in jobs for each in self._counted(job))
        run_jobs(jobs, self._run, mixed=self._index.mixes_adapters)
        for job in jobs:
            self._cut(job)
        self._metrics.cached(self._budget)
        return [self._response(job) for job in jobs]

    def finalize(self) -> None:
        """Free the sessions, and objects of requests that are still held in reference cycles."""
        self._shared = None
        self._budget.keep(set())
        self._metrics.cached(self._budget)
        gc.collect()

    # ------------------------------------------------------------------------------- requests

    def _job(self, request: Any) -> Job:
        """Return a request as a job; whatever is wrong with it is its own failure."""
        try:
            index = self._index
            feeds = {
                name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in index.inputs
            }
            _require_alike(feeds, index)
            count = len(feeds[index.inputs[0]])
            if not count:
                raise Failure("INVALID_ARG", "the batch has no row")  # noqa: TRY301
            job = Job(feeds, self._adapters(request, count))
        except Failure as failure:
            return Job({}, [], failure.detached())
        except Exception as error:  # noqa: BLE001  (the other requests have nothing to do with it)
            return Job({}, [], Failure("INVALID_ARG", f"the request cannot be read: {error}"))
        unknown = [name for name in dict.fromkeys(job.adapters) if not self._known(name)]
        if unknown:
            job.failure = self._unknown(unknown[0])
        return job

    def _known(self, name: str | None) -> bool:
        return self._index.base if name is None else name in self._index.adapters

    def _counted(self, job: Job) -> list[str]:
        """Return the names by which a job is counted: every adapter once, unknown ones together."""
        return [
            (name or BASE) if self._known(name) else "unknown"
            for name in dict.fromkeys(job.adapters)
        ]

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
        shown = name if ADAPTER_NAME.fullmatch(name) else ascii(name[:64])
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
        if index.mixes_adapters:
            runner = Runner(self._shared, {}, self._settings)
            feeds = {**feeds, ADAPTER_IDS: self._rows(adapters)}
        else:
            runner = self._loaded(adapters[0])
        try:
            outputs = runner.run(index.outputs, feeds)
        except Exception as error:  # ONNX Runtime's have no class of their own
            text = f"the graph refuses these inputs: {_line(error)}"
            raise Failure("INVALID_ARG", text) from error
        for name, each in zip(index.outputs, outputs, strict=True):
            if each.shape[:1] != (len(adapters),):
                text = f"{name!r} is {list(each.shape)} for {len(adapters)} row(s)"
                raise Failure("INTERNAL", text)
        return outputs

    def _loaded(self, name: str | None) -> Runner:
        """Return a runner of an adapter, or a `Failure` if it cannot be loaded."""
        what = f"adapter {name or BASE}"
        try:
            return self._runner(name)
        except Failure:
            raise
        except FileNotFoundError as error:
            raise Failure("UNAVAILABLE", f"a file of {what} is missing") from error
        except TooLargeError as error:
            raise Failure("UNAVAILABLE", f"{what}: {error}") from error
        except (TensorError, BadIndexError) as error:
            raise Failure("INTERNAL", f"{what}: {error}") from error
        except Exception as error:
            raise Failure("INTERNAL", f"{what} cannot be loaded: {_line(error)}") from error

    def _runner(self, name: str | None) -> Runner:
        """Return a runner of the adapter that the index names now."""
        while True:
            index = self._index
            try:
                return self._opened(index, name)
            except Failure:
                raise
            except Exception:
                self._refresh()  # replaced or removed since the batch began?
                if self._index is index:
                    raise

    def _opened(self, index: Index, name: str | None) -> Runner:
        if name is None:
            return Runner(self._base(), {}, self._settings)
        adapter = self._entry(name)
        return self._budget.get(
            (name, adapter.file),
            adapter.nbytes,
            lambda: load_runner(
                self._folder, index, name, shared=self._shared, settings=self._settings
            ),
        )

    def _rows(self, adapters: Sequence[str | None]) -> Any:
        """Return the row of each adapter in the stacks; 0 is the base."""
        entries = [None if name is None else self._entry(name) for name in adapters]
        return np.array([0 if each is None else each.row for each in entries], np.int64)

    def _cut(self, job: Job) -> None:
        """Leave a job the logits that its own adapters have, whoever shared its batch."""
        index = self._index
        if job.failure is not None or not index.mixes_adapters:
            return
        widths = [
            index.base_width if name is None else index.adapters[name].width
            for name in set(job.adapters)
        ]
        if None not in widths:
            job.outputs[0] = job.outputs[0][..., : max(widths)]

    def _entry(self, name: str) -> Adapter:
        """Return the index's entry of an adapter, which may have changed a moment ago."""
        if name not in self._index.adapters:
            raise self._unknown(name)
        entry: Adapter = self._index.adapters[name]
        return entry

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
            if index.shares_session:
                shared = open_session(locate(self._folder, index.graph), self._settings)
            self._shared = shared
        self._index = index
        self._budget.keep({(name, each.file) for name, each in index.adapters.items()})


def _settings(args: Mapping[str, str], parameters: Mapping[str, str]) -> Settings:
    on_gpu = args["model_instance_kind"] == "GPU"
    provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
    return Settings(provider, int(args["model_instance_device_id"]), int(parameters["threads"]))


def _require_alike(feeds: Mapping[str, Any], index: Index) -> None:
    """Refuse axes of one name and two sizes: a graph may stretch one of size 1 without a word."""
    sizes: dict[str, tuple[int, str]] = {}
    for name, values in feeds.items():
        for size, axis in zip(values.shape, index.axes.get(name, ()), strict=False):
            known, where = sizes.setdefault(axis, (size, name)) if axis else (size, "")
            if known != size:
                text = f"{axis!r} is {size} in {name!r} and {known} in {where!r}"
                raise Failure("INVALID_ARG", text)


def _text(name: object) -> str:
    if name is None:
        return ""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return "" if text == BASE else text


def _line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
