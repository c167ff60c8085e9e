"""A swappable graph: one session, its adapters' tensors bound as inputs, each run with its own.

A tensor of an adapter is an input of the graph with the base's value as its default. It is put on
the provider's device once and bound to that place. ONNX Runtime's own way to pass an adapter,
``RunOptions.add_active_adapter``, is not used: runs with bound inputs ignore it and return the
base's outputs, and without bound inputs a GPU would be given a copy of the adapter by every run.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from lora_export.base.errors import AdapterError
from lora_export.runtime.ort import device_of, failed, open_session, ort_value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt
    import onnxruntime

__all__ = ["BoundAdapter", "SwappableGraph"]


class SwappableGraph:
    """The session of a swappable graph.

    Args:
        path: The ``.onnx`` file; its weights lie beside it.
        provider: The execution provider, by its full name.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.

    Raises:
        LoraExportError: See `open_session`.
    """

    def __init__(self, path: Path, *, provider: str, threads: int = 0) -> None:
        self.session = open_session(path, provider=provider, threads=threads)
        self.device = device_of(provider)
        self.outputs = tuple(node.name for node in self.session.get_outputs())
        self.optional = {
            node.name: tuple(node.shape) for node in self.session.get_overridable_initializers()
        }

    def base(self) -> BoundAdapter:
        """Return what runs the graph without an adapter."""
        return BoundAdapter(self, {})

    def bind(self, name: str, tensors: Mapping[str, npt.NDArray[Any]]) -> BoundAdapter:
        """Put the tensors of an adapter on the device.

        Args:
            name: The adapter's name, for messages.
            tensors: Its tensors by the names of the graph's optional inputs.

        Raises:
            AdapterError: A tensor is no input of the graph, or does not have its shape.
        """
        for each, values in tensors.items():
            shape = self.optional.get(each)
            if shape is None:
                msg = f"the swappable graph has no input {each!r}, which adapter {name!r} sets"
                raise AdapterError(
                    msg, hint="Export again with this adapter, so that its modules can be swapped."
                )
            if not _fits(values.shape, shape):
                msg = (
                    f"{each!r} of adapter {name!r} has the shape {list(values.shape)}, "
                    f"the swappable graph reads {list(shape)}"
                )
                raise AdapterError(msg, hint="Is the adapter of this base?")
        _require_pairs(name, tensors)
        return BoundAdapter(self, tensors)


class BoundAdapter:
    """An adapter on the device of its graph; thread-safe.

    A binding is used by one run at a time, and kept for the next one, because making it takes a
    call per tensor. Its outputs are bound anew for each run: left alone, the next run would write
    over them, while the arrays that were returned still point there.
    """

    def __init__(self, graph: SwappableGraph, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        self._graph = graph
        self.optional = tuple(graph.optional)
        self._values = {name: ort_value(each, graph.device) for name, each in tensors.items()}
        self._free: deque[onnxruntime.IOBinding] = deque()

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once with this adapter.

        Args:
            feeds: All inputs, and any optional ones (``lora_scale``).

        Raises:
            ExportDirectoryError: The graph cannot be run on these inputs.
        """
        graph = self._graph
        try:
            binding = self._free.pop()
        except IndexError:
            binding = graph.session.io_binding()
            for name, value in self._values.items():
                binding.bind_ortvalue_input(name, value)
        held = {name: ort_value(values) for name, values in feeds.items()}  # bound by address
        try:
            for name, value in held.items():
                binding.bind_ortvalue_input(name, value)
            for name in graph.outputs:
                binding.bind_output(name, "cpu")
            graph.session.run_with_iobinding(binding)
            values = [value.numpy() for value in binding.get_outputs()]
        except Exception as error:
            raise failed(error) from error
        binding.clear_binding_outputs()
        if not graph.optional.keys() & held.keys():  # an optional input would stay bound
            self._free.append(binding)
        return dict(zip(graph.outputs, values, strict=True))


def _fits(found: tuple[int, ...], declared: tuple[int | str | None, ...]) -> bool:
    return len(found) == len(declared) and all(
        not isinstance(axis, int) or axis in {0, size}
        for size, axis in zip(found, declared, strict=True)
    )


def _require_pairs(name: str, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Require both factors of every update, with one rank.

    Raises:
        AdapterError: One is missing, or the ranks differ.
    """
    a_name, b_name = ".lora_A.weight", ".lora_B.weight"
    modules = {each.removesuffix(end) for each in tensors for end in (a_name, b_name)
               if each.endswith(end)}  # fmt: skip
    for module in sorted(modules):
        a, b = tensors.get(module + a_name), tensors.get(module + b_name)
        if a is None or b is None:
            lacks = a_name if a is None else b_name
            msg = f"adapter {name!r} has no {module + lacks!r}, only the other factor"
            raise AdapterError(msg, hint="The adapter is damaged: make its pack again.")
        if a.shape[-1] != b.shape[0]:
            msg = f"adapter {name!r}: {module!r} has ranks {a.shape[-1]} (A) and {b.shape[0]} (B)"
            raise AdapterError(msg, hint="The adapter is damaged: make its pack again.")
