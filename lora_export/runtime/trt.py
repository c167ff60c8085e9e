"""TensorRT: an engine of an export that can be run as the other runtimes' graphs are.

TensorRT itself is called in `lora_export.ondevice`, on devices too. What is added here is what an
export knows: the base of a swappable engine as explicit values, packs of adapters, and which two
engines are an encoder and its decoder.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.modes import Mode
from lora_export.graph.adapters.required_inputs import base_values
from lora_export.graph.spec.onnx_file import read_onnx
from lora_export.graph.spec.signature import own_cache, read_signature
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.graph_runner import GraphRunner
from lora_export.ondevice.judge.pair_runner import PairRunner
from lora_export.ondevice.trt.api import import_tensorrt
from lora_export.ondevice.trt.build_record import plan_file, read_record
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.plan_opening import open_plan
from lora_export.ondevice.trt.swappable_inputs import padded, smallest_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.ondevice.graph_runner import Input
    from lora_export.ondevice.trt.cuda import Cuda
    from lora_export.ondevice.trt.trt_runner import TrtRunner

    Array = npt.NDArray[Any]

__all__ = ["TrtGraph", "open_trt", "targets_of", "tensorrt_version"]


class TrtGraph(GraphRunner):
    """One graph, of one engine or two, with an adapter where it takes one; not thread-safe.

    Args:
        runner: The engine, or the pair.
        rank: The smallest rank that its profiles cover; 0 where it takes no adapters.
        adapter: Values of optional inputs, for every run.

    Attributes:
        runner: The engine, or the pair.
    """

    def __init__(
        self,
        runner: TrtRunner | PairRunner,
        *,
        rank: int = 0,
        adapter: Mapping[str, Array] | None = None,
    ) -> None:
        self.runner = runner
        self._rank = rank
        self.adapter = padded(adapter or {}, rank)
        self.optional: Mapping[str, Input] = runner.optional
        self.inputs = runner.inputs
        self.outputs = runner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once; inputs that it does not have are left out.

        Raises:
            DeviceError: An input is missing, or of a dtype or shape that the engine does not take.
        """
        return self.runner.run(self._given(feeds))

    def bound(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """Return a run of the engine on values that stay on its device; see `TrtRunner.bound`.

        Raises:
            DeviceError: See `run`.
            UnsupportedError: It is a pair of engines.
        """
        if isinstance(self.runner, PairRunner):
            msg = "two engines have no values that stay on the device from run to run"
            hint = "Bind the engines themselves: runner.encoder, runner.decoder."
            raise UnsupportedError(msg, hint=hint)
        return self.runner.bound(self._given(feeds))

    def _given(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        known = {*self.inputs, *self.optional}
        given = {name: values for name, values in feeds.items() if name in known}
        return {**padded(given, self._rank), **self.adapter}

    def with_adapter(self, adapter: Mapping[str, Array]) -> TrtGraph:
        """Return the same engine with other values of the optional inputs."""
        other = copy.copy(self)
        other.adapter = padded(adapter, self._rank)
        return other

    def close(self) -> None:
        """Free the memory on the device."""
        self.runner.close()


def open_trt(
    root: Path,
    manifest: Manifest,
    graph: str,
    target: str,
    *,
    adapter: Mapping[str, Array] | None = None,
    cuda: Cuda | None = None,
    cuda_graphs: bool = False,
) -> TrtGraph:
    """Open the engine of a graph; without `adapter` a swappable one computes the base.

    Of an encoder-decoder both engines are opened, and ``runner`` of the graph is an `PairRunner`.

    Args:
        root: The export.
        manifest: Its manifest.
        graph: A graph of the export.
        target: The target that it was built for.
        adapter: Values of the optional inputs of a swappable graph; see `exports.packs.read_pack`.
        cuda: CUDA's functions; loaded by default.
        cuda_graphs: See `TrtRunner`.

    Raises:
        DeviceError: TensorRT or a device is missing, or the plan does not fit either or the export.
        UsageError: The export has no such graph.
        UnsupportedError: It has parameters without values.
    """
    record = manifest.graphs.get(graph)
    if record is None:
        msg = f"the export has no graph {graph!r}"
        raise UsageError(msg, hint=f"It has: {', '.join(manifest.graphs)}.")
    if record.missing:
        msg = (
            f"the graph {graph!r} has no values for {record.missing[0]!r}: only adapters bring them"
        )
        raise UnsupportedError(
            msg, hint="Open an adapter's engine; lora-export refit makes one of it."
        )
    version = tensorrt_version()
    device = cuda or open_cuda()

    def opened(file: str, defaults: Mapping[str, Array] | None = None) -> TrtRunner:
        return open_plan(
            root,
            _plan_of(file, target, version),
            sha256=manifest.files,
            fingerprint=manifest.base.fingerprint,
            cuda=device,
            defaults=defaults,
            cuda_graphs=cuda_graphs,
        )

    if record.encoder is not None:
        with contextlib.ExitStack() as opening:
            encoder = opening.enter_context(opened(record.encoder.onnx))
            pair = PairRunner(encoder, opened(record.onnx), _empty(root, record))
            opening.pop_all()
        return TrtGraph(pair, adapter=adapter)
    if record.mode is not Mode.SWAPPABLE:
        return TrtGraph(opened(record.onnx), adapter=adapter)
    plan = resolve_inside(root, _plan_of(record.onnx, target, version))
    rank = smallest_rank(BuildSettings.from_json(read_record(plan)["settings"]).profiles)
    defaults = base_values(read_graph(resolve_inside(root, record.onnx)), root, rank=rank)
    return TrtGraph(opened(record.onnx, defaults), rank=rank, adapter=adapter)


def tensorrt_version() -> str:
    """Return the version of TensorRT that is installed.

    Raises:
        DeviceError: None is.
    """
    return str(import_tensorrt().__version__)


def targets_of(manifest: Manifest, graph: str) -> list[str]:
    """Return the targets that there is an engine of a graph for, of the TensorRT that is installed.

    Raises:
        DeviceError: TensorRT is not installed.
    """
    begin, end = plan_file(graph, "\0", tensorrt_version()).split("\0")
    return [
        file.removeprefix(begin).removesuffix(end)
        for file in manifest.files
        if file.startswith(begin) and file.endswith(end)
    ]


def _plan_of(onnx_file: str, target: str, version: str) -> str:
    return plan_file(onnx_file.removesuffix(".onnx"), target, version)


def _empty(root: Path, record: GraphRecord) -> dict[str, tuple[int, int, str]]:
    return own_cache(read_signature(read_onnx(resolve_inside(root, record.onnx))).inputs)
