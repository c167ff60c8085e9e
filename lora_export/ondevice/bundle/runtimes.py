"""The runtimes of a bundle: TensorRT where it is installed, else ONNX Runtime.

A bundle with ready engines is run by the library that built them, and by no other. A report says in
words which of them ran. One that was made with ONNX Runtime, or with an unknown library in
TensorRT's place, says that TensorRT did not.
"""

from __future__ import annotations

import importlib.util
import os
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict

from lora_export.ondevice.bundle.tensor_values import read_values
from lora_export.ondevice.device_errors import DeviceError, MissingRuntimeError, UnsupportedError
from lora_export.ondevice.judge.golden_files import read_arrays
from lora_export.ondevice.ort.ort_session import OrtSession, onnxruntime_version
from lora_export.ondevice.trt.api import import_library
from lora_export.ondevice.trt.build_record import plan_file, read_record
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.engine_builder import BuildJob, build
from lora_export.ondevice.trt.libraries import (
    LIBRARIES,
    TENSORRT,
    TENSORRT_RTX,
    library_of,
    library_row,
    what_ran,
)
from lora_export.ondevice.trt.plan_opening import checked_plan, open_live, open_plan
from lora_export.ondevice.trt.record_table import BuildRecord
from lora_export.ondevice.trt.swappable_inputs import smallest_rank

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_export.ondevice.bundle.bundle_index import Index
    from lora_export.ondevice.bundle.index_values import Check, EngineSource
    from lora_export.ondevice.graph_runner import GraphRunner
    from lora_export.ondevice.trt.trt_runner import TrtRunner

__all__ = ["RUNTIMES", "BundledRecord", "Runtime", "RuntimeRow", "open_runtime"]

_ONNXRUNTIME: Final = "onnxruntime"
_BASE: Final = "base"
RUNTIMES: Final = (TENSORRT, TENSORRT_RTX, _ONNXRUNTIME)
_ON_DEVICE: Final = (TENSORRT, _ONNXRUNTIME)
"""What runs a bundle whose engines are built on the device, in the order of preference."""


class BundledRecord(BuildRecord):
    """The record of an engine, and whether it, or what was compiled of it, was there before.

    `compile_seconds` is None where the engine was built here.
    """

    kept: bool
    compile_seconds: float | None


class RuntimeRow(TypedDict, total=False):
    """The runtime that ran; `compute_capability` is TensorRT's alone."""

    name: str
    version: str
    device: str
    compute_capability: str
    tensorrt_ran: bool
    says: str


class Runtime(Protocol):
    """Opens the graphs of a bundle.

    Attributes:
        label: A word for file names: the library that runs.
        gates: Whether TensorRT runs, so that the latency says something of the target.
    """

    label: str
    gates: bool

    def describe(self) -> RuntimeRow:
        """Return the runtime's entry in a report."""

    def sources(self, check: Check) -> tuple[str, ...]:
        """Return the graphs that a check needs, by their stems."""

    def build(self, stem: str, tell: Callable[[str], None]) -> BundledRecord | None:
        """Make what `open` needs, unless it is there already; return what is known of it."""

    def smallest_rank(self, stem: str) -> int:
        """Return the smallest rank of an adapter's factors that a graph takes; 0 for any."""

    def open(self, stem: str, refit: str | None = None) -> GraphRunner:
        """Return a graph, ready to be run; with other weights of the base's, where it takes them.

        Args:
            stem: The graph.
            refit: A file of weights that belong into the base's engine.
        """


def open_runtime(
    name: str | None, bundle_dir: Path, index: Index, tell: Callable[[str], None]
) -> Runtime:
    """Return the runtime called `name`; without a name TensorRT where it is installed.

    Args:
        name: One of `RUNTIMES`.
        bundle_dir: The bundle, unpacked.
        index: Its index.
        tell: Told what costs time.

    Raises:
        MissingRuntimeError: It is not installed, or there is neither.
        UnsupportedError: The bundle is for another.
        DeviceError: The library of the engines is missing, or a CUDA device.
    """
    library = index.contents.library
    offered = (library,) if library_row(library).builds_ahead else _ON_DEVICE
    if name is not None and name not in offered:
        msg = f"the bundle {index.name!r} has no files that {name!r} runs"
        raise UnsupportedError(msg, hint=f"It is for: {', '.join(offered)}.")
    if len(offered) == 1:
        return TrtRuntime(bundle_dir, index, tell)
    if name is None:
        name = next((each for each in offered if importlib.util.find_spec(each)), None)
    if name is None:
        msg = "neither TensorRT nor ONNX Runtime is installed"
        hint = "On a Jetson TensorRT comes with JetPack (python3-libnvinfer); elsewhere: "
        raise MissingRuntimeError(msg, hint=f"{hint}pip install onnxruntime")
    return (
        TrtRuntime(bundle_dir, index, tell) if name == TENSORRT else OrtRuntime(bundle_dir, index)
    )


class OrtRuntime:
    """ONNX Runtime on the CPU: the same comparison, and nothing that TensorRT does.

    Args:
        bundle_dir: The bundle, unpacked.
        index: Its index.
    """

    label = _ONNXRUNTIME
    gates = False

    def __init__(self, bundle_dir: Path, index: Index) -> None:
        self._version = onnxruntime_version()
        self._bundle_dir, self._graphs = bundle_dir, index.contents.graphs

    def describe(self) -> RuntimeRow:
        """Return the runtime's entry in a report."""
        return {
            "name": _ONNXRUNTIME,
            "version": self._version,
            "device": "CPU",
            "tensorrt_ran": False,
            "says": f"ONNX Runtime {self._version} on the CPU; TensorRT did not run",
        }

    def sources(self, check: Check) -> tuple[str, ...]:
        """Return the graphs that a check needs."""
        return (check.graph,) if check.encoder is None else (check.encoder, check.graph)

    def build(self, stem: str, tell: Callable[[str], None]) -> BundledRecord | None:
        """Do nothing: ONNX Runtime opens the graph as it is."""
        del stem, tell
        return None

    def smallest_rank(self, stem: str) -> int:
        """Return 0: its ranks may be empty."""
        del stem
        return 0

    def open(self, stem: str, refit: str | None = None) -> GraphRunner:
        """Return a session of a graph; a merged graph has its weights.

        Quantized weights are computed with as they are, so that golden outputs can be compared.
        """
        del refit
        file = self._graphs[stem].onnx
        if file is None:
            msg = f"the bundle does not hold the graph {stem!r}"
            raise UnsupportedError(msg, hint="Pack the bundle again.")
        return OrtSession(self._bundle_dir / file, exact=True)


class TrtRuntime:
    """A library with TensorRT's API: engines are built on the device, or compiled there.

    Args:
        bundle_dir: The bundle, unpacked.
        index: Its index.
        tell: Told, once each, what costs time.
    """

    def __init__(self, bundle_dir: Path, index: Index, tell: Callable[[str], None]) -> None:
        self._library = index.contents.library
        module = import_library(self._library)
        self._tell = _once(tell)
        self.label, self._version = library_of(module), str(module.__version__)
        self._cuda = open_cuda()
        self._bundle_dir, self._graphs = bundle_dir, index.contents.graphs
        self._target = index.contents.target
        packed = {name: member.sha256 for name, member in index.files.items()}
        self._sha256 = {**index.contents.sources, **packed}
        self._fingerprint = index.contents.base_fingerprint
        self.gates = self.label in LIBRARIES

    def describe(self) -> RuntimeRow:
        """Return the runtime's entry in a report."""
        gpu = self._cuda.gpu()
        return {
            "name": self.label,
            "version": self._version,
            "device": gpu.name,
            "compute_capability": gpu.compute_capability,
            "tensorrt_ran": self.gates,
            "says": what_ran(self.label, self._version, gpu.name),
        }

    def sources(self, check: Check) -> tuple[str, ...]:
        """Return the engines that a check needs: the base's, where the adapter is a refit of it."""
        if check.refit is not None and self._graphs[check.graph].engine is None:
            return (_BASE,)
        stems = (check.graph,) if check.encoder is None else (check.encoder, check.graph)
        return tuple(stem for stem in stems if self._graphs[stem].engine is not None)

    def build(self, stem: str, tell: Callable[[str], None]) -> BundledRecord | None:
        """Build an engine, unless one is there that fits; return its record.

        One that was built before the bundle was packed is compiled for the GPU.

        Raises:
            DeviceError: It cannot be built or compiled.
            UnsupportedError: The graph has no engine; the index says why.
        """
        plan = self._plan(stem)
        if self._engine(stem).plan is not None:
            return self._compiled(stem, tell)
        if os.path.lexists(self._bundle_dir / plan):
            try:
                _, record = checked_plan(
                    self._bundle_dir, plan, self._sha256, self._fingerprint, self._cuda
                )
            except DeviceError as error:
                tell(f"building {stem} again: {error.message}")
            else:
                return {**record, "kept": True, "compile_seconds": None}
        source = self._engine(stem)
        job = BuildJob(
            root=self._bundle_dir,
            graph=stem,
            target=self._target,
            onnx=source.onnx,
            weights=tuple(source.weights),
            sha256=self._sha256,
            base_fingerprint=self._fingerprint,
            settings=BuildSettings.from_json(source.settings),
            refit=source.refit,
            library=self._library,
        )
        record = build(job, cuda=self._cuda, tell=tell)
        return {**record, "kept": False, "compile_seconds": None}

    def _compiled(self, stem: str, tell: Callable[[str], None]) -> BundledRecord:
        """Compile a ready engine, and keep the kernels; return its record."""
        tell(f"compiling {stem}")
        started = time.monotonic()
        with self._opened(stem) as runner:
            kept = runner.uses_stored_kernels
        seconds = round(time.monotonic() - started, 3)
        record = read_record(self._bundle_dir / self._plan(stem))
        return {**record, "kept": kept, "compile_seconds": seconds}

    def smallest_rank(self, stem: str) -> int:
        """Return the smallest rank that a profile of the graph's engine covers."""
        return smallest_rank(BuildSettings.from_json(self._engine(stem).settings).profiles)

    def open(self, stem: str, refit: str | None = None) -> GraphRunner:
        """Return a runner of a built engine, or the base's engine with an adapter's weights."""
        if refit is not None and self._graphs[stem].engine is None:
            return self._refitted(refit)
        return self._opened(stem)

    def _opened(self, stem: str) -> TrtRunner:
        defaults = self._engine(stem).defaults
        return open_plan(
            self._bundle_dir,
            self._plan(stem),
            sha256=self._sha256,
            fingerprint=self._fingerprint,
            cuda=self._cuda,
            defaults=None if defaults is None else read_arrays(self._bundle_dir / defaults),
            wait_for_kernels=True,
            tell=self._tell,
        )

    def _refitted(self, file: str) -> GraphRunner:
        source = self._engine(_BASE)
        live, _ = open_live(
            self._bundle_dir,
            self._plan(_BASE),
            sha256=self._sha256,
            fingerprint=self._fingerprint,
            cuda=self._cuda,
        )

        def supply(name: str) -> Any:
            for each in source.weights:
                if name in (found := read_values(self._bundle_dir / each, [name])):
                    return found[name]
            return None

        live.use(read_values(self._bundle_dir / file), supply)
        return live

    def _plan(self, stem: str) -> str:
        """Return the plan of a graph: a ready one, or the one that is built here."""
        return self._engine(stem).plan or plan_file(stem, self._target, self._version, self.label)

    def _engine(self, stem: str) -> EngineSource:
        source = self._graphs[stem]
        if source.engine is None:
            msg = f"the bundle cannot build {stem!r}: {source.reason}"
            raise UnsupportedError(msg, hint="Check it with: --runtime onnxruntime.")
        return source.engine


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that tells each text the first time only: engines are opened repeatedly."""
    told: set[str] = set()

    def tell_once(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(f"warning: {text}")

    return tell_once
