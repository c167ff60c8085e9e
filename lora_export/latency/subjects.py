"""The subjects that are timed: graphs of an export on a runner, opened once, fed cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.pack_reading import read_pack
from lora_export.graph.spec import tasks
from lora_export.latency.two_graphs import open_two
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.libraries import TENSORRT, TENSORRT_RTX
from lora_export.runtime.bound import BoundRun
from lora_export.runtime.ort import PROVIDERS, open_session, require_provider
from lora_export.runtime.reference import Reference, require_torch
from lora_export.runtime.torch_runner import TorchRunner
from lora_export.runtime.trt import library_version, open_trt

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.latency.points import Bind, Point, Source

__all__ = [
    "RUNNERS",
    "RunnerKind",
    "open_graph",
    "open_timed",
    "require_runner",
]


@dataclass(frozen=True)
class RunnerKind:
    """One row of the table: a runtime, and where it runs.

    Attributes:
        provider: Of ONNX Runtime, by its short name; None where another library runs the model.
        device: Where torch runs it.
        compiled: Whether ``torch.compile`` has it.
        engine: The library that runs an engine which was built of the graph.
    """

    provider: str | None = None
    device: str = "cpu"
    compiled: bool = False
    engine: str | None = None

    @property
    def torch(self) -> bool:
        """Whether torch runs the base checkpoint, and not a graph."""
        return self.provider is None and self.engine is None


RUNNERS: Final[dict[str, RunnerKind]] = {
    "ort-cpu": RunnerKind("cpu"),
    "ort-cuda": RunnerKind("cuda"),
    "ort-tensorrt": RunnerKind("tensorrt"),
    "tensorrt": RunnerKind(engine=TENSORRT),
    "rtx": RunnerKind(engine=TENSORRT_RTX),
    "torch": RunnerKind(),
    "torch-compile": RunnerKind(compiled=True),
    "torch-cuda": RunnerKind(device="cuda"),
    "torch-cuda-compile": RunnerKind(device="cuda", compiled=True),
}
"""The runners by name. torch runs the base checkpoint, with the adapter unmerged, through PEFT."""


def require_runner(name: str) -> RunnerKind:
    """Return a row of `RUNNERS` that is installed.

    Raises:
        UsageError: There is none of that name.
        MissingRuntimeError: Its library, provider or device is not there.
    """
    if name not in RUNNERS:
        msg = f"unknown runner {name!r}"
        raise UsageError(msg, hint=f"Runners: {', '.join(RUNNERS)}.")
    runner = RUNNERS[name]
    if runner.provider is not None:
        require_provider(runner.provider)
    elif runner.engine is not None:
        library_version(runner.engine)
        open_cuda()
    else:
        require_torch(runner.device)
    return runner


def open_graph(source: Source, graph: str, runner: RunnerKind, *, threads: int) -> Bind:
    """Open a graph in ONNX Runtime, or its engine in the library that built it.

    Raises:
        LoraExportError: The graph, its weights or the adapter's pack are damaged or missing.
    """
    if runner.engine is not None:
        return _open_engine(source, graph, runner.engine)
    assert runner.provider is not None  # noqa: S101  (the caller looked)
    provider = PROVIDERS[runner.provider]
    manifest = source.manifest
    if source.paired:
        return open_two(source, manifest.graphs[graph], provider, threads=threads)
    held = source.graph_of(graph)
    pack = {} if held == graph else dict(read_pack(source.export_dir, manifest, graph))
    session = open_session(
        resolve_inside(source.export_dir, manifest.graphs[held].onnx),
        provider=provider,
        threads=threads,
    )

    def bind(point: Point, seed: int) -> Callable[[], object]:
        feeds = source.feeds(point, graph, seed=seed)
        return BoundRun(session, provider, {**feeds, **pack})

    return bind


def _open_engine(source: Source, graph: str, library: str) -> Bind:
    held, target = source.engine(graph, library)
    pack = {} if held == graph else dict(read_pack(source.export_dir, source.manifest, graph))
    engine = open_trt(
        source.export_dir,
        source.manifest,
        held,
        target,
        library=library,
        adapter=pack,
        wait_for_kernels=True,  # what is timed is what was compiled for its shapes
    )

    def bind(point: Point, seed: int) -> Callable[[], object]:
        return engine.bound(source.feeds(point, graph, seed=seed))

    return bind


def open_timed(source: Source, graph: str, runner: RunnerKind, *, threads: int) -> Bind:
    """Open a graph, or in torch the model that it was made of, with the adapter unmerged.

    Raises:
        LoraExportError: See `open_graph`, `Reference` and `TorchRunner`.
    """
    if not runner.torch:
        return open_graph(source, graph, runner, threads=threads)
    assert source.checkpoint is not None  # noqa: S101  (required before anything is opened)
    if source.paired:
        msg = "the torch runners do not time encoder-decoders"
        raise UnsupportedError(msg, hint="Leave the torch runners out.")
    task = tasks.by_name(source.manifest.base.task)
    reference = Reference(
        source.checkpoint,
        task,
        adapter=None if graph == BASE_GRAPH else (source.adapters or {})[graph],
        labels_count=source.labels_count,
        vocab_size=None if graph == BASE_GRAPH else source.manifest.adapters[graph].vocab_size,
    )
    model = TorchRunner(
        reference.model, task.inputs, task.outputs,
        device=runner.device, compiled=runner.compiled, threads=threads,
    )  # fmt: skip

    def bind(point: Point, seed: int) -> Callable[[], object]:
        return model.bound(source.feeds(point, graph, seed=seed), past=point.past)

    return bind
