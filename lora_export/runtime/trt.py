"""TensorRT, and TensorRT for RTX: an engine of an export, run as the other runtimes' graphs are.

The libraries are called in `lora_export.ondevice`, on devices too. What is added here is what an
export knows: the base of a swappable engine as explicit values, packs of adapters, and which two
engines are an encoder and its decoder.
"""

from __future__ import annotations

import contextlib
import copy
import os
from typing import TYPE_CHECKING, Any

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.modes import Mode
from lora_export.core.targets import RTX
from lora_export.graph.adapters.required_inputs import base_values
from lora_export.graph.spec.onnx_file import read_onnx
from lora_export.graph.spec.signature import own_cache, read_signature
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.graph_runner import GraphRunner
from lora_export.ondevice.judge.pair_runner import PairRunner
from lora_export.ondevice.trt.api import import_library
from lora_export.ondevice.trt.build_record import FOLDER, plan_file, read_record
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.libraries import LIBRARIES, TENSORRT, TENSORRT_RTX, library_row
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

__all__ = ["TrtGraph", "library_version", "open_trt", "targets_of"]


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
    export_dir: Path,
    manifest: Manifest,
    graph: str,
    target: str,
    *,
    library: str | None = None,
    adapter: Mapping[str, Array] | None = None,
    cuda: Cuda | None = None,
    cuda_graphs: bool = False,
    wait_for_kernels: bool = False,
) -> TrtGraph:
    """Open the engine of a graph; without `adapter` a swappable one computes the base.

    Of an encoder-decoder both engines are opened, and ``runner`` of the graph is a `PairRunner`.

    Args:
        export_dir: The export.
        manifest: Its manifest.
        graph: A graph of the export.
        target: The target that it was built for.
        library: The library that built it: ``tensorrt`` or ``tensorrt-rtx``; by default the one
            that the export has an engine of, TensorRT where both have built one.
        adapter: Values of the optional inputs of a swappable graph; see `exports.packs.read_pack`.
        cuda: CUDA's functions; loaded by default.
        cuda_graphs: See `TrtRunner`.
        wait_for_kernels: See `CompiledContext`; TensorRT has no such kernels.

    Raises:
        DeviceError: The library or a device is missing, or the plan does not fit either of them or
            the export.
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
    library = library or _library_of(manifest, record.onnx, target)
    version = library_version(library)
    device = cuda or open_cuda()

    def plan_of(file: str) -> str:
        plan = plan_file(file.removesuffix(".onnx"), target, version, library)
        if os.path.lexists(export_dir / plan):
            return plan
        others = _plans(
            manifest, file, target, library
        )  # which say that another version built them
        return others[-1] if others else plan

    def opened(file: str, defaults: Mapping[str, Array] | None = None) -> TrtRunner:
        return open_plan(
            export_dir,
            plan_of(file),
            sha256=manifest.files,
            fingerprint=manifest.base.fingerprint,
            cuda=device,
            defaults=defaults,
            cuda_graphs=cuda_graphs,
            wait_for_kernels=wait_for_kernels,
        )

    if record.encoder is not None:
        with contextlib.ExitStack() as opening:
            encoder = opening.enter_context(opened(record.encoder.onnx))
            pair = PairRunner(encoder, opened(record.onnx), _empty(export_dir, record))
            opening.pop_all()
        return TrtGraph(pair, adapter=adapter)
    if record.mode is not Mode.SWAPPABLE:
        return TrtGraph(opened(record.onnx), adapter=adapter)
    plan = resolve_inside(export_dir, plan_of(record.onnx))
    rank = smallest_rank(BuildSettings.from_json(read_record(plan)["settings"]).profiles)
    defaults = base_values(
        read_graph(resolve_inside(export_dir, record.onnx)), export_dir, rank=rank
    )
    return TrtGraph(opened(record.onnx, defaults), rank=rank, adapter=adapter)


def library_version(library: str = TENSORRT) -> str:
    """Return the version of a library that is installed.

    Raises:
        DeviceError: It is not installed, or not supported in that version.
    """
    return str(import_library(library).__version__)


def targets_of(manifest: Manifest, graph: str, library: str = TENSORRT) -> list[str]:
    """Return the targets that there is an engine of a graph for, of the library as installed.

    Raises:
        DeviceError: The library is not installed.
    """
    begin, end = plan_file(graph, "\0", library_version(library), library).split("\0")
    return [
        file.removeprefix(begin).removesuffix(end)
        for file in manifest.files
        if file.startswith(begin) and file.endswith(end)
    ]


def _library_of(manifest: Manifest, onnx_file: str, target: str) -> str:
    """Return the first library of the table that has built an engine of a graph for a target."""
    found = (name for name in LIBRARIES if _plans(manifest, onnx_file, target, name))
    return next(found, TENSORRT_RTX if target == RTX else TENSORRT)


def _plans(manifest: Manifest, onnx_file: str, target: str, library: str) -> list[str]:
    """Return the plans of a graph for a target that a library has built, in any version."""
    begin = f"{FOLDER}/{onnx_file.removesuffix('.onnx')}.{target}.{library_row(library).tag}"
    return sorted(f for f in manifest.files if f.startswith(begin) and f.endswith(".plan"))


def _empty(export_dir: Path, record: GraphRecord) -> dict[str, tuple[int, int, str]]:
    return own_cache(read_signature(read_onnx(resolve_inside(export_dir, record.onnx))).inputs)
