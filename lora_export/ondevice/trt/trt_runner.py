"""An engine that can be run: the profile chosen by the shapes, device buffers reused."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.graph_runner import GraphRunner, Input
from lora_export.ondevice.trt.api import array_of, from_bfloat16, numpy_dtype
from lora_export.ondevice.trt.build_settings import ShapeRange, shape_fits
from lora_export.ondevice.trt.cuda import DeviceBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import tensorrt as trt

    from lora_export.ondevice.trt.compiled_context import CompiledContext
    from lora_export.ondevice.trt.cuda import Cuda

    Array = np.ndarray[Any, Any]

__all__ = ["TrtRunner"]


class TrtRunner(GraphRunner):
    """One engine and one execution context; not thread-safe.

    `lora_export.ondevice.trt.plan_opening.open_plan` makes one of a plan and its record.

    Args:
        engine: The engine.
        cuda: CUDA's functions.
        defaults: Values of inputs that a run need not give: the base of a swappable graph.
        cuda_graphs: Whether the second run with the same shapes is recorded, and replayed until the
            shapes change. It saves the time of launching kernels, which is most of what a small
            graph takes.
        compiled: The engine's context and kernels, where its library compiles it here; such a
            library records CUDA graphs itself.

    Attributes:
        profiles: The shapes that each profile covers, by input.

    Raises:
        DeviceError: The device has too little memory.
    """

    def __init__(
        self,
        engine: trt.ICudaEngine,
        cuda: Cuda,
        *,
        defaults: Mapping[str, Array] | None = None,
        cuda_graphs: bool = False,
        compiled: CompiledContext | None = None,
    ) -> None:
        self._engine: trt.ICudaEngine = engine
        self._cuda = cuda
        self._cuda_graphs = cuda_graphs and compiled is None
        self._compiled = compiled
        self._defaults = dict(defaults or {})
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        ins = {each for each in names if engine.get_tensor_mode(each).name == "INPUT"}
        self._inputs = tuple(each for each in names if each in ins)
        self.inputs = tuple(each for each in self._inputs if each not in self._defaults)
        self.optional = {e: self._input(e) for e in self._inputs if e in self._defaults}
        self.outputs = tuple(each for each in names if each not in ins)
        self.profiles = tuple(map(self._ranges, range(engine.num_optimization_profiles)))
        self._buffers = {each: DeviceBuffer(cuda) for each in names}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._profile = 0
        self._recorded: int | None = None
        self._closed = False
        context = engine.create_execution_context() if compiled is None else compiled.create(engine)
        if context is None:
            msg = "TensorRT cannot create an execution context"
            raise DeviceError(msg, hint="The device has too little memory: smaller profiles.")
        self._context: trt.IExecutionContext = context
        self._stream = cuda.create_stream()

    def _input(self, name: str) -> Input:
        dtype, _ = numpy_dtype(self._engine.get_tensor_dtype(name))
        sizes = self._engine.get_tensor_shape(name)
        return Input(name, dtype, tuple("" if size < 0 else int(size) for size in sizes))

    def _ranges(self, profile: int) -> dict[str, ShapeRange]:
        """Return the shapes of every input that a profile covers."""
        return {
            name: ShapeRange(
                *(tuple(each) for each in self._engine.get_tensor_profile_shape(name, profile))
            )
            for name in self._inputs
        }

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine once; inputs that it does not have are left out.

        bfloat16 inputs are given as float32, or as two bytes; such outputs come as float32.

        Raises:
            DeviceError: An input is missing, of another dtype, or of a shape in no profile; or the
                device failed.
        """
        changed = self._give(feeds)
        self._execute(changed=changed)
        found = {name: self._empty(name) for name in self.outputs}
        for name, each in found.items():
            self._cuda.copy_to_host(each, self._buffers[name].address, self._stream)
        self._cuda.synchronize(self._stream)
        return {name: self._result(name, each) for name, each in found.items()}

    def bound(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """Put values on the device once; return what runs the engine on them, without any copy.

        A run ends when the device is done. It is good until other shapes are given.

        Raises:
            DeviceError: See `run`.
        """
        self._give(feeds)
        self._execute(changed=True)
        self._cuda.synchronize(self._stream)
        shapes = dict(self._shapes)

        def run() -> None:
            if self._closed or shapes != self._shapes:
                msg = "other shapes were given since, or the engine was closed"
                raise DeviceError(msg, kind="usage")
            self._execute(changed=False)
            self._cuda.synchronize(self._stream)

        return run

    @property
    def uses_stored_kernels(self) -> bool:
        """Whether the engine did not have to be compiled: its kernels were there."""
        return self._compiled is not None and self._compiled.kept

    def _give(self, feeds: Mapping[str, Array]) -> bool:
        """Put values on the device; return whether their shapes are others than before."""
        if self._closed:
            msg = "the engine was closed"
            raise DeviceError(msg, kind="usage")
        values = {name: self._value(name, feeds) for name in self._inputs}
        changed = self._prepare({name: each.shape for name, each in values.items()})
        for name, each in values.items():
            self._cuda.copy_to_device(self._buffers[name].address, each, self._stream)
        return changed

    def _value(self, name: str, feeds: Mapping[str, Array]) -> Array:
        given = feeds.get(name)
        if given is None:
            given = self._defaults.get(name)
        if given is None:
            msg = f"the engine also reads {name!r}"
            raise DeviceError(msg, hint=f"Its inputs: {', '.join(self._inputs)}.", kind="usage")
        return array_of(given, name, self._engine.get_tensor_dtype(name))

    def _prepare(self, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Set profile, shapes and addresses; return whether anything has changed."""
        if shapes == self._shapes:
            return False
        self._shapes = {}  # nothing is set until everything is
        profile = self._fitting(shapes)
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self._stream):
                msg = f"TensorRT cannot switch to profile {profile}"
                raise DeviceError(msg)
            self._cuda.synchronize(self._stream)
            self._profile = profile
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                msg = f"TensorRT refuses {name!r} of shape {list(shape)}"
                raise DeviceError(msg, kind="usage")
        if lacking := self._context.infer_shapes():
            msg = f"TensorRT cannot determine the shapes without {lacking[0]!r}"
            raise DeviceError(msg)
        self._forget_recording()  # it holds the old shapes and addresses
        for name in self._buffers:
            self._place(name)
        self._shapes = shapes
        return True

    def _place(self, name: str) -> None:
        """Allocate a tensor, and set its address in TensorRT."""
        size = self._size(name)
        buffer = self._buffers[name]
        _, dtype = numpy_dtype(self._engine.get_tensor_dtype(name))
        buffer.reserve(math.prod(size) * dtype.itemsize)
        if not self._context.set_tensor_address(name, buffer.address):
            msg = f"TensorRT refuses the address of {name!r}"
            raise DeviceError(msg)

    def _size(self, name: str) -> tuple[int, ...]:
        size = tuple(self._context.get_tensor_shape(name))
        if any(axis < 0 for axis in size):
            msg = f"the shape of {name!r}, {list(size)}, depends on values"
            raise DeviceError(msg, hint="Such outputs are not handled.", kind="unsupported")
        return size

    def _fitting(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the profile that covers the shapes; of several the one tuned for the nearest."""
        fitting = [
            (_distance(shapes, ranges), number)
            for number, ranges in enumerate(self.profiles)
            if all(shape_fits(shapes[name], each) for name, each in ranges.items())
        ]
        if fitting:
            return min(fitting)[1]
        name, shape = next(
            (name, shape)
            for name, shape in shapes.items()
            if len(self.profiles) > 1 or not shape_fits(shape, self.profiles[0][name])
        )
        covered = " or ".join(_shown(ranges[name]) for ranges in self.profiles)
        msg = f"no profile covers {name!r} of shape {list(shape)}: it may be {covered}"
        if len(self.profiles) > 1:
            together = ", ".join(f"{each} {list(size)}" for each, size in shapes.items())
            msg = f"no profile covers these shapes together: {together}; {name!r} may be {covered}"
        raise DeviceError(msg, hint="Build it with a profile that covers them.", kind="usage")

    def _execute(self, *, changed: bool) -> None:
        """Give the stream the work: as kernels, or as a recording of them.

        The first run with new shapes is not recorded: TensorRT then does what happens once. A
        recording is not kept for when its shapes come back: the context's own state has changed.
        """
        if changed or not self._cuda_graphs:
            self._enqueue()
            return
        if self._recorded is None:
            self._recorded = self._record()
        self._cuda.launch(self._recorded, self._stream)

    def _record(self) -> int:
        self._cuda.synchronize(self._stream)
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue()
        except BaseException:
            with contextlib.suppress(DeviceError):
                self._cuda.destroy_executable(self._cuda.end_capture(self._stream))
            raise
        return self._cuda.end_capture(self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            msg = "TensorRT could not run the engine"
            raise DeviceError(msg)

    def _empty(self, name: str) -> Array:
        _, dtype = numpy_dtype(self._engine.get_tensor_dtype(name))
        return np.empty(self._size(name), dtype)

    def _result(self, name: str, values: Array) -> Array:
        ours, _ = numpy_dtype(self._engine.get_tensor_dtype(name))
        return from_bfloat16(values) if ours == "bfloat16" else values

    def _forget_recording(self) -> None:
        if self._recorded is not None:
            recorded, self._recorded = self._recorded, None
            self._cuda.destroy_executable(recorded)

    def close(self) -> None:
        """Free the memory on the device; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._cuda.synchronize(self._stream)
        self._forget_recording()
        for buffer in self._buffers.values():
            buffer.close()
        self._cuda.destroy_stream(self._stream)
        if self._compiled is not None:
            self._compiled.keep()  # kernels for new shapes were compiled while it ran
        del self._context
        if self._compiled is not None:
            self._compiled.close()
        del self._engine


def _distance(shapes: Mapping[str, tuple[int, ...]], ranges: Mapping[str, ShapeRange]) -> float:
    """Return how far shapes are from those that a profile is tuned for: Σ |log((n+1)/(opt+1))|."""
    return sum(
        abs(math.log((size + 1) / (best + 1)))
        for name, each in ranges.items()
        for size, best in zip(shapes[name], each.opt, strict=True)
    )


def _shown(each: ShapeRange) -> str:
    return f"{list(each.min)} to {list(each.max)}"
