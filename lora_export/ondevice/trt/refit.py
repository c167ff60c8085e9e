"""New weights for a built engine: set, completed, and applied as a whole.

A refit that fails may leave an engine half changed. So it is done on a copy that nobody uses:
`LiveEngine` loads the plan afresh, refits that, and takes it into use when it has succeeded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.graph_runner import GraphRunner
from lora_export.ondevice.trt.api import Log, array_of, numpy_dtype
from lora_export.ondevice.trt.plan_loading import deserialize
from lora_export.ondevice.trt.trt_runner import TrtRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import tensorrt as trt

    from lora_export.ondevice.graph_runner import Input
    from lora_export.ondevice.trt.cuda import Cuda

    Array = np.ndarray[Any, Any]
    Supply = Callable[[str], Array | None]

__all__ = ["LiveEngine", "neighbours", "refit", "refit_stripped", "serialized"]


def refit(
    engine: trt.ICudaEngine, values: Mapping[str, Array], log: Log, *, supply: Supply | None = None
) -> tuple[str, ...]:
    """Set new weights of `engine`; return the neighbours that had to be supplied as well.

    Args:
        engine: The engine; not to be used if this fails.
        values: The weights, by their names in the graph and in its layout; bfloat16 as two bytes.
        log: Where TensorRT says what is wrong.
        supply: Returns the value of a further weight that TensorRT asks for: one that it has fused
            with a changed one.

    Raises:
        DeviceError: A weight was not marked refittable, has another size or dtype, is asked for
            and not known; or TensorRT refuses.
    """
    refitter = _refitter(engine, log)
    known = set(refitter.get_all_weights())
    if unknown := sorted(set(values) - known):
        msg = f"the weight {unknown[0]!r} of the engine was not marked refittable"
        hint = f"{len(known)} weights are; build again with the adapters that are to be used."
        raise DeviceError(msg, hint=hint, kind="unsupported")
    held = [_set(refitter, name, each, log) for name, each in values.items()]
    supplied: list[str] = []
    while missing := sorted(set(refitter.get_missing_weights())):
        for name in missing:
            further = None if supply is None or name in supplied else supply(name)
            if further is None:
                msg = f"TensorRT asks for the weight {name!r} too, which is not known"
                raise DeviceError(msg, hint="Build the engine again.", kind="unsupported")
            held.append(_set(refitter, name, further, log))
            supplied.append(name)
    if not refitter.refit_cuda_engine():
        msg = f"TensorRT could not refit the engine: {log.last_message()}"
        raise DeviceError(msg)
    del held  # TensorRT reads them until here
    return tuple(supplied)


def neighbours(engine: trt.ICudaEngine, names: Sequence[str], log: Log) -> tuple[str, ...]:
    """Return the weights that have to be supplied where those called `names` are; sets nothing.

    Raises:
        DeviceError: One of `names` is not refittable.
    """
    refitter = _refitter(engine, log)
    held = []
    for name in names:
        wanted = refitter.get_weights_prototype(name)
        _, dtype = numpy_dtype(wanted.dtype)
        held.append(_set(refitter, name, np.zeros(wanted.size, dtype), log))
    found = tuple(sorted(set(refitter.get_missing_weights()) - set(names)))
    del held
    return found


def _refitter(engine: trt.ICudaEngine, log: Log) -> trt.Refitter:
    trt = log.module
    try:
        return trt.Refitter(engine, log.logger)
    except (RuntimeError, TypeError) as error:  # the binding's factory returned nothing
        msg = f"the engine was not built to be refitted: {log.last_message()}"
        raise DeviceError(msg, hint="Build it with --refit.", kind="unsupported") from error


def _set(refitter: trt.Refitter, name: str, values: Array, log: Log) -> Array:
    """Hand a weight over; return the array that has to live until the refit is done."""
    wanted = refitter.get_weights_prototype(name)
    held = np.ascontiguousarray(array_of(values, name, wanted.dtype))
    if held.size != wanted.size:
        msg = f"the weight {name!r} has {held.size} values, the engine's has {wanted.size}"
        raise DeviceError(msg, hint="A refit cannot change a shape.", kind="unsupported")
    trt = log.module
    weights = trt.Weights(wanted.dtype, held.ctypes.data, held.size)
    if not refitter.set_named_weights(name, weights):
        msg = f"TensorRT refuses the weight {name!r}: {log.last_message()}"
        raise DeviceError(msg)
    return held


def refit_stripped(engine: trt.ICudaEngine, onnx: Path, log: Log) -> None:
    """Put the weights of an ONNX file into an engine that was built without. Changes `engine`.

    Raises:
        DeviceError: The file does not have what the engine asks for.
    """
    refitter = _refitter(engine, log)
    trt = log.module
    parser = trt.OnnxParserRefitter(refitter, log.logger)
    read_graph(onnx)  # TensorRT would open whatever the graph names
    if not parser.refit_from_file(str(onnx)):
        reason = parser.get_error(0).desc() if parser.num_errors else log.last_message()
        msg = f"the weights of {onnx.name!r} do not fit the engine: {reason}"
        raise DeviceError(msg, kind="input")
    if not refitter.refit_cuda_engine():
        missing = sorted(set(refitter.get_missing_weights()))
        which = f"{missing[0]!r} is missing" if missing else log.last_message()
        msg = f"TensorRT could not put the weights of {onnx.name!r} into the engine: {which}"
        raise DeviceError(msg, kind="input")


def serialized(engine: trt.ICudaEngine, log: Log) -> Any:
    """Return the plan of an engine with the weights that it has now, as a buffer.

    An engine that was built without weights is serialized without them too, unless told otherwise.
    """
    config = engine.create_serialization_config()
    trt = log.module
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    plan = engine.serialize_with_config(config)
    if plan is None:
        msg = "TensorRT could not serialize the engine"
        raise DeviceError(msg)
    return plan


class LiveEngine(GraphRunner):
    """An engine in use whose weights can be swapped: whole, or not at all.

    During a swap two engines are in memory. Every swap begins with the plan, so that going back to
    the base is exact, and no swap depends on the one before.

    Args:
        plan: The base's plan.
        cuda: CUDA's functions.
        version_compatible: Whether the plan was built to be loaded by later versions.
        options: What `TrtRunner` takes.
    """

    def __init__(
        self,
        plan: bytes,
        cuda: Cuda,
        log: Log,
        *,
        version_compatible: bool = False,
        **options: Any,
    ) -> None:
        self._plan = plan
        self._cuda = cuda
        self._compatible = version_compatible
        self._options = options
        self._log = log
        self._runner = self._opened(self._loaded())
        self.inputs, self.outputs = self._runner.inputs, self._runner.outputs
        self.optional: Mapping[str, Input] = self._runner.optional

    def _loaded(self) -> trt.ICudaEngine:
        return deserialize(self._plan, self._log, version_compatible=self._compatible)

    def _opened(self, engine: trt.ICudaEngine) -> TrtRunner:
        return TrtRunner(engine, self._cuda, **self._options)

    @property
    def runner(self) -> TrtRunner:
        """The runner that is in use now."""
        return self._runner

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine once with the weights that are in use."""
        return self._runner.run(feeds)

    def use(self, values: Mapping[str, Array], supply: Supply | None = None) -> tuple[str, ...]:
        """Take other weights into use; see `refit`. What is in use stays so if this fails."""
        fresh = self._loaded()
        supplied = refit(fresh, values, self._log, supply=supply)
        self._take(fresh)
        return supplied

    def use_base(self) -> None:
        """Go back to the weights of the plan."""
        self._take(self._loaded())

    def _take(self, engine: trt.ICudaEngine) -> None:
        opened = self._opened(engine)
        before, self._runner = self._runner, opened
        before.close()

    def close(self) -> None:
        """Free the memory on the device."""
        self._runner.close()
