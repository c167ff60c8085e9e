"""TensorRT: an engine of an export that can be run as the other runtimes' graphs are.

TensorRT itself is called in `lora_export.device`, on devices too. What is added here is what an
export knows: the base of a swappable engine as explicit values, and packs of adapters.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from lora_export.base.errors import UsageError
from lora_export.base.files import resolve_inside
from lora_export.device.api import import_tensorrt
from lora_export.device.opening import open_plan
from lora_export.device.record import plan_file, read_record
from lora_export.device.settings import BuildSettings
from lora_export.device.swap import LORA_A, padded
from lora_export.graph.required import base_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy.typing as npt
    from typing_extensions import Self

    from lora_export.base.manifest import Manifest
    from lora_export.device.cuda import Cuda
    from lora_export.device.trt_runner import TrtRunner

    Array = npt.NDArray[Any]

__all__ = ["TrtGraph", "open_trt", "targets_of", "tensorrt_version"]


class TrtGraph:
    """One engine; what `OrtRunner` is for ONNX Runtime. Not thread-safe.

    Args:
        runner: The engine.
        rank: The smallest rank that its profiles cover; 0 where it takes no adapters.
        adapter: Values of optional inputs, for every run.
    """

    def __init__(
        self, runner: TrtRunner, *, rank: int = 0, adapter: Mapping[str, Array] | None = None
    ) -> None:
        self._runner = runner
        self._rank = rank
        self.adapter = padded(adapter or {}, rank)
        self.optional = runner.optional
        self.inputs = tuple(name for name in runner.inputs if name not in runner.optional)
        self.outputs = runner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine once; inputs that it does not have are left out.

        Raises:
            DeviceError: An input is missing, or of a dtype or shape that the engine does not take.
        """
        return self._runner.run(self._given(feeds))

    def bound(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """Return what runs the engine on values that stay on its device; see `TrtRunner.bound`.

        Raises:
            DeviceError: See `run`.
        """
        return self._runner.bound(self._given(feeds))

    def _given(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: values for name, values in feeds.items() if name in self._runner.inputs}
        return {**padded(given, self._rank), **self.adapter}

    def complete(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the feeds with what the graph reads beside them: nothing; see `RowRunner`."""
        return feeds

    def with_adapter(self, adapter: Mapping[str, Array]) -> TrtGraph:
        """Return the same engine with other values of the optional inputs."""
        other = copy.copy(self)
        other.adapter = padded(adapter, self._rank)
        return other

    def close(self) -> None:
        """Give the memory of the device back."""
        self._runner.close()

    def __enter__(self) -> Self:
        """Return the graph."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


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
        UsageError: The export has no such graph, or it is two.
    """
    record = manifest.graphs.get(graph)
    if record is None or record.encoder is not None:
        msg = f"the export has no single graph {graph!r}"
        raise UsageError(msg, hint=f"It has: {', '.join(manifest.graphs)}.")
    plan = plan_file(graph, target, tensorrt_version())
    defaults: dict[str, Array] = {}
    rank = 0
    if record.mode == "swappable":
        settings = BuildSettings.from_json(read_record(resolve_inside(root, plan))["settings"])
        rank = _smallest_rank(settings)
        defaults = base_values(resolve_inside(root, record.onnx).read_bytes(), root, rank=rank)
    runner = open_plan(
        root,
        plan,
        sha256=manifest.files,
        fingerprint=manifest.base.fingerprint,
        cuda=cuda,
        defaults=defaults,
        cuda_graphs=cuda_graphs,
    )
    return TrtGraph(runner, rank=rank, adapter=adapter)


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


def _smallest_rank(settings: BuildSettings) -> int:
    """Return the smallest rank of A, ``[in, r]``, in any profile."""
    ranks = [
        each.min[1]
        for profile in settings.profiles
        for name, each in profile.items()
        if name.endswith(LORA_A)
    ]
    return min(ranks, default=0)
