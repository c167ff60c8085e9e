"""Estimates of the memory that a build and a run need, from the graph.

    run    weights + inputs and outputs + the most that intermediate values take at once
    build  3 to 4 times the weights + the same

Values that weights are dequantized to count as nothing: kernels dequantize as they read.
Sizes are those of the largest shapes. The factor is what users of TensorRT-Edge-LLM report of
builds; intermediate values are counted as the graph has them, where an engine fuses many away.
Not counted: the CUDA context and TensorRT's own libraries (some hundreds of MB), and what else
runs on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import onnx

from lora_export.core.dtypes import DTYPES
from lora_export.engines.dynamic_axes import largest_sizes
from lora_export.engines.findings import Finding
from lora_export.engines.graph_view import tensor_type
from lora_export.graph.nodes.axis_shapes import shapes_of
from lora_export.graph.spec.signature import PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lora_export.core.targets import Target
    from lora_export.engines.graph_view import GraphView
    from lora_export.ondevice.trt.build_settings import Profile

__all__ = ["Memory", "check_memory", "estimate_memory", "stored_bytes", "tensor_bytes"]

_BUILD_FACTORS: Final = (3, 4)
_GIB: Final = 1 << 30
_ITEM_BYTES: Final = {row.onnx: row.itemsize_bytes for row in DTYPES.values()}
_HALF_BYTES: Final = frozenset({onnx.TensorProto.INT4, onnx.TensorProto.UINT4})


@dataclass(frozen=True)
class Memory:
    """An estimate; what depends on shapes is None where they are not known.

    Attributes:
        weights_bytes: The graph's initializers.
        cache_bytes: Keys and values, past and present, at the largest shapes.
        io_bytes: All inputs and outputs, these included.
        activations_bytes: The most that intermediate values take at once.
        unknown: How many of these have no known shape, and count as nothing.
    """

    weights_bytes: int
    cache_bytes: int | None
    io_bytes: int | None
    activations_bytes: int | None
    unknown: int = 0

    @property
    def _shapes_bytes(self) -> int:
        return (self.io_bytes or 0) + (self.activations_bytes or 0)

    @property
    def run_bytes(self) -> int:
        """The memory that a run needs, as far as it is known."""
        return self.weights_bytes + self._shapes_bytes

    @property
    def build_bytes(self) -> tuple[int, int]:
        """The memory that a build needs: with the smaller and with the larger factor."""
        low, high = (factor * self.weights_bytes + self._shapes_bytes for factor in _BUILD_FACTORS)
        return low, high


def estimate_memory(view: GraphView, profiles: Sequence[Profile]) -> Memory:
    """Return the memory that a graph needs at the largest shapes of its profiles.

    Args:
        view: The graph, its optional inputs as plain ones.
        profiles: What an engine would be built for.
    """
    graph = view.model.graph
    weights = stored_bytes(graph.initializer)
    named = {
        axis.dim_param
        for value in graph.input
        for axis in value.type.tensor_type.shape.dim
        if not axis.HasField("dim_value")
    }
    sizes = [largest_sizes(view, each) for each in profiles] or [{}]
    if any(named - set(each) for each in sizes):
        return Memory(weights, None, None, None)
    try:
        rows = [_of_shapes(view, each) for each in sizes]
    except onnx.shape_inference.InferenceError:
        return Memory(weights, None, None, None)  # the graph contradicts itself; others say so
    cached, io, activations, unknown = (max(row[at] for row in rows) for at in range(4))
    return Memory(weights, cached, io, activations, unknown)


def _of_shapes(view: GraphView, sizes: Mapping[str, int]) -> tuple[int, int, int, int]:
    """Return the bytes of the cache, of all inputs and outputs, of what is between; the unknown."""
    graph = view.model.graph
    shapes = shapes_of(view.model, sizes)
    types = {value.name: tensor_type(value) for value in (*graph.input, *graph.output)}
    taken = {name: tensor_bytes(kind, shapes.get(name, ())) for name, kind in types.items()}
    cached = sum(size for name, size in taken.items() if name.startswith((PAST, PRESENT)))
    made = {name for node in graph.node for name in node.output if name}
    unknown = len(made - set(shapes) - set(types))
    return cached, sum(taken.values()), _peak(view, shapes, set(types)), unknown


def check_memory(memory: Memory, target: Target, memory_gib: float | None) -> Iterator[Finding]:
    """Yield what does not fit into the device, or into the smaller of those of its name.

    Args:
        memory: The estimate.
        target: Where it is built and run.
        memory_gib: The memory of the user's device, if it is known.
    """
    sizes = [memory_gib] if memory_gib is not None else list(target.memory_gib)
    if not sizes:
        return
    low, high = memory.build_bytes
    for what, least, most in (
        ("run", memory.run_bytes, memory.run_bytes),
        ("build", low, high),
    ):
        enough = [size for size in sizes if most <= size * _GIB]
        if len(enough) == len(sizes):
            continue
        possible = [size for size in sizes if least <= size * _GIB]
        shown = _gib(least) if least == most else f"{_gib(least)} to {_gib(most)}"
        device = f"{target.name} has {_listed(sizes)} GiB"
        if enough:
            device += f"; enough with {_listed(enough)}"
        yield Finding(
            "warning" if possible else "error",
            f"memory-{what}",
            f"memory to {what}",
            f"about {shown} GiB at the largest shapes; {device}",
            _remedy(target, what),
        )


def _remedy(target: Target, what: str) -> str:
    if what == "run":
        return "Narrow the ranges (--profile), or export in float16."
    if target.shared_memory:
        return "Free the memory of the host before the build: it is the device's as well."
    return "Say how large the device is with --memory, or narrow the ranges (--profile)."


def _peak(view: GraphView, shapes: Mapping[str, Sequence[int]], kept: set[str]) -> int:
    """Return the most that values take at once which are neither inputs nor outputs.

    Nodes run in their order; a value lives from its node to the last that reads it. What nodes of
    bodies make is not counted.
    """
    nodes = view.model.graph.node
    stored = {each.name for each in view.model.graph.initializer}
    kept = kept | {
        name
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
        for name in node.output
    }
    last: dict[str, int] = {}
    for at, node in enumerate(nodes):
        last |= dict.fromkeys(node.input, at)
    types = view.types
    ends: dict[int, int] = {}
    alive = peak = 0
    for at, node in enumerate(nodes):
        for name in node.output:
            size = 0 if name in kept else tensor_bytes(types.get(name, 0), shapes.get(name, ()))
            alive += size
            end = last.get(name, at)
            ends[end] = ends.get(end, 0) + size
        peak = max(peak, alive)
        alive -= ends.pop(at, 0)
    return peak


def tensor_bytes(kind: int, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor of an ONNX type; 0 of a type that is not known."""
    if kind in _HALF_BYTES:
        return (prod(shape) + 1) // 2
    return _ITEM_BYTES.get(kind, 0) * prod(shape)


def stored_bytes(initializers: Iterable[onnx.TensorProto]) -> int:
    """Return the bytes of initializers; those that lie at one place of a file count once."""
    places: dict[object, int] = {}
    for each in initializers:
        size = tensor_bytes(each.data_type, each.dims)
        held = tuple(sorted((entry.key, entry.value) for entry in each.external_data))
        key = held or each.name
        places[key] = max(size, places.get(key, 0))
    return sum(places.values())


def _gib(count_bytes: int) -> str:
    return f"{count_bytes / _GIB:.2g}" if count_bytes < _GIB else f"{count_bytes / _GIB:.1f}"


def _listed(sizes: Sequence[float]) -> str:
    return ", ".join(f"{size:g}" for size in sizes)
