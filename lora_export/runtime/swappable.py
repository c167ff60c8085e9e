"""A swappable graph: one session, its adapters' tensors bound as inputs, each run with its own.

A tensor of an adapter is an input of the graph with the base's value as its default. It is put on
the provider's device once and bound to that place. ONNX Runtime's own way to pass an adapter,
``RunOptions.add_active_adapter``, is not used: runs with bound inputs ignore it and return the
base's outputs, and without bound inputs a GPU would be given a copy of the adapter by every run.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from lora_export.core.dtypes import by_name
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.pack_reading import require_fit
from lora_export.graph.adapters.swappable_graph import LORA_SCALE, MAGNITUDE
from lora_export.ondevice.graph_runner import GraphRunner, closed_error
from lora_export.ondevice.ort.ort_session import run_error
from lora_export.ondevice.ort.shared_cache import outputs_in_place, run_bound
from lora_export.runtime.ort import OrtRunner, device_of, ort_value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt
    import onnxruntime

__all__ = ["BoundAdapter", "SwappableGraph"]


class SwappableGraph:
    """The session of a swappable graph; `optional` are its inputs that have a default.

    Args:
        path: The ``.onnx`` file; its weights lie beside it.
        provider: The execution provider, by its full name.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.

    Raises:
        LoraExportError: See `open_session`.
    """

    def __init__(self, path: Path, *, provider: str, threads: int = 0) -> None:
        self.runner = OrtRunner(path, provider=provider, threads=threads)
        self.device = device_of(provider)
        self.optional = self.runner.optional
        self.axes = {name: each.axes for name, each in self.optional.items()}

    def base(self) -> BoundAdapter:
        """Return a runner of the graph without an adapter."""
        return BoundAdapter(self, BASE_GRAPH, {})

    def bind(
        self, name: str, tensors: Mapping[str, npt.NDArray[Any]], *, fixed_scale: bool = False
    ) -> BoundAdapter:
        """Put the tensors of an adapter on the device.

        Args:
            name: The adapter's name, for messages.
            tensors: Its tensors by the names of the graph's optional inputs.
            fixed_scale: Whether a value of it holds for the scale 1 only; see `BoundAdapter`.

        Raises:
            AdapterError: The graph cannot take the tensors; see `require_fit`.
        """
        require_fit(name, {each: values.shape for each, values in tensors.items()}, self.axes)
        for each, values in tensors.items():
            wanted = by_name(self.optional[each].dtype).numpy
            if values.dtype != wanted:
                msg = f"{each!r} of adapter {name!r} is {values.dtype}, the graph reads {wanted}"
                raise AdapterError(msg, hint="Make a pack of the adapter for this export.")
        return BoundAdapter(self, name, tensors, fixed_scale=fixed_scale)


class BoundAdapter(GraphRunner):
    """An adapter on the device of its graph; thread-safe.

    A binding is used by one run at a time, and kept for the next one, because making it takes a
    call per tensor. Its outputs are bound anew for each run: left alone, the next run would write
    over them, while the arrays that were returned still point there.

    DoRA's factors ``m / ‖W + s·B A‖``, and a bias that holds ``s·bias`` of a B, are those of the
    scale 1: such an adapter is not run with another ``lora_scale``, which multiplies A B alone.

    Args:
        graph: The graph.
        name: The adapter's name, for messages.
        tensors: Its tensors by the names of the graph's optional inputs.
        fixed_scale: Whether it has such a bias; factors are seen from their names.
    """

    def __init__(
        self,
        graph: SwappableGraph,
        name: str,
        tensors: Mapping[str, npt.NDArray[Any]],
        *,
        fixed_scale: bool = False,
    ) -> None:
        self._graph, self._name = graph, name
        self.inputs = graph.runner.inputs
        self.optional = graph.runner.optional
        self.outputs = graph.runner.outputs
        self._fixed_scale = fixed_scale or any(each.endswith(MAGNITUDE) for each in tensors)
        self._values = {each: ort_value(values, graph.device) for each, values in tensors.items()}
        self._free: deque[onnxruntime.IOBinding] = deque()
        self._closed = False

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once with this adapter.

        Args:
            feeds: All inputs, and any optional ones (``lora_scale``).

        Raises:
            UnsupportedError: ``lora_scale`` is not 1, and the adapter holds for that alone.
            ExportDirectoryError: The graph cannot be run on these inputs.
            UsageError: The adapter was closed.
        """
        if self._closed:
            raise closed_error(f"the adapter {self._name!r}")
        graph = self._graph
        self._require_scale(feeds)
        try:
            binding = self._free.pop()
        except IndexError:
            binding = graph.runner.session.io_binding()
            for name, value in self._values.items():
                binding.bind_ortvalue_input(name, value)
        known = {*self.inputs, *self.optional}
        held = {n: ort_value(each) for n, each in feeds.items() if n in known}  # bound by address
        kept = outputs_in_place(feeds) if graph.runner.shares_cache else {}
        try:
            values = run_bound(
                graph.runner.session, binding, self.outputs, held=held, feeds=feeds, kept=kept
            )
        except Exception as error:
            raise run_error(error) from error
        binding.clear_binding_outputs()
        if not self.optional.keys() & held.keys():  # an optional input would stay bound
            self._free.append(binding)
        return values

    def close(self) -> None:
        """Free the adapter's tensors; the graph, which others share, stays open."""
        self._closed = True  # or the base would be computed
        self._free.clear()
        self._values.clear()

    def _require_scale(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        scale = feeds.get(LORA_SCALE)
        if self._fixed_scale and scale is not None and float(scale) != 1:
            msg = (
                f"{LORA_SCALE} is {float(scale):g}, and adapter {self._name!r} (DoRA, or a bias on "
                "B) has values that hold for 1 only"
            )
            raise UnsupportedError(
                msg,
                hint="Add it with that scale, under a name of its own: lora-export add EXPORT "
                f"--adapter NAME=PATH --scale NAME={float(scale):g}",
            )
