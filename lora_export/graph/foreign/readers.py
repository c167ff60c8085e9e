"""The layout, module and parameter name of an initializer, found from the nodes that read it.

Exporters write down where a node comes from, each in its way:

    1. TorchScript names nodes by module path: ``/bert/encoder/layer.0/…/query/MatMul``.
    2. The dynamo exporter keeps ``pkg.torch.onnx.name_scopes`` among a node's metadata.
    3. A product is followed by the addition of a bias, whose name is mostly kept: a weight beside
       ``…query.bias`` is ``…query.weight``.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from lora_export.graph.foreign.rewire import all_graphs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

__all__ = ["Reading", "module_type_of", "parameter_names", "readings_of"]

_PASSED_THROUGH: Final = frozenset({"Cast", "Identity", "Transpose"})
_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})
_CONVOLUTIONS: Final = {3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_MATRIX: Final = 2
_LONGEST_CHAIN: Final = 64
"""How many casts and transposes in a row are looked through."""

_Use: TypeAlias = "tuple[onnx.NodeProto, int]"
"""A node, and which of its inputs is meant."""


@dataclass(frozen=True)
class Reading:
    """A node that computes with an initializer.

    Attributes:
        node: The node.
        index: Which of its inputs the initializer is.
        swapped: Whether it arrives there with its two axes exchanged.
        names: Names of parameters that the initializer may be, by what surrounds the node.
    """

    node: onnx.NodeProto = field(repr=False)
    index: int
    swapped: bool
    names: tuple[str, ...]

    @property
    def is_lookup(self) -> bool:
        """Whether rows of the initializer are picked."""
        return self.node.op_type == "Gather" and self.index == 0


def readings_of(graph: onnx.GraphProto, names: Sequence[str]) -> dict[str, tuple[Reading, ...]]:
    """Return the readings of each initializer called so, those in subgraphs included."""
    uses: dict[str, list[_Use]] = defaultdict(list)
    for each in all_graphs(graph):
        for node in each.node:
            for index, name in enumerate(node.input):
                uses[name].append((node, index))
    initializers = {each.name for each in graph.initializer}
    return {name: tuple(_follow(name, uses, initializers)) for name in names}


def _follow(
    initializer: str, uses: Mapping[str, Sequence[_Use]], initializers: set[str]
) -> list[Reading]:
    """Return the readings of an initializer, through at most `_LONGEST_CHAIN` nodes in a row."""
    found: list[Reading] = []
    waiting: list[tuple[str, bool, tuple[str, ...], int]] = [(initializer, False, (), 0)]
    seen = {initializer}
    while waiting:
        name, swapped, paths, length = waiting.pop()
        passed: list[tuple[str, bool, tuple[str, ...], int]] = []
        for node, index in uses.get(name, ()):
            paths_here = (*paths, *_paths(node))
            if node.op_type in _PASSED_THROUGH:
                output = node.output[0]
                if output and output not in seen and length < _LONGEST_CHAIN:
                    seen.add(output)
                    turned = swapped ^ (node.op_type == "Transpose")
                    passed.append((output, turned, paths_here, length + 1))
                continue
            beside = _beside(node, index, uses, initializers)
            role = "bias" if _adds(node, index) else "weight"
            hinted = (*(f"{path}.{role}" for path in paths_here), *beside)
            found.append(Reading(node, index, swapped, tuple(dict.fromkeys(hinted))))
        waiting.extend(reversed(passed))
    return found


def parameter_names(readings: Sequence[Reading]) -> tuple[str, ...]:
    """Return the names that the surroundings of an initializer give it, each once."""
    return tuple(dict.fromkeys(name for reading in readings for name in reading.names))


def module_type_of(
    readings: Sequence[Reading], shape: tuple[int, ...], *, transposed: bool
) -> str | None:
    """Return the class of the module that owns a parameter, by how the graph computes with it.

    A product reads ``[in, out]``. What arrives so and is stored so in the checkpoint is a
    ``Conv1D``'s; what the checkpoint stores as ``[out, in]`` is a ``Linear``'s.

    Args:
        readings: Those of the initializer.
        shape: The parameter's shape in the checkpoint.
        transposed: Whether the initializer is the transpose of it.
    """
    if any(reading.is_lookup for reading in readings) and len(shape) == _MATRIX:
        return "Embedding"
    for reading in readings:
        kind = reading.node.op_type
        if kind == "Conv" and reading.index == 1:
            return _CONVOLUTIONS.get(len(shape))
        if kind in _PRODUCTS and reading.index in {0, 1} and len(shape) == _MATRIX:
            flag = "transA" if reading.index == 0 else "transB"
            turned = reading.swapped ^ bool(_integer(reading.node, flag)) ^ (reading.index == 0)
            return "Conv1D" if turned == transposed else "Linear"
    return None


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next((each.i for each in node.attribute if each.name == name), 0)


def _adds(node: onnx.NodeProto, index: int) -> bool:
    """Whether an input is added rather than multiplied with."""
    return node.op_type == "Add" or index == 2  # noqa: PLR2004  (Gemm, Conv, LayerNormalization)


def _paths(node: onnx.NodeProto) -> list[str]:
    """Return the module paths that the exporter wrote down for `node`, the innermost first."""
    paths: list[str] = []
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            paths.extend(reversed(_listed(entry.value)))
    if node.name.startswith("/"):
        paths.append(".".join(node.name.strip("/").split("/")[:-1]))
    return [path for path in paths if path]


def _listed(text: str) -> list[str]:
    """Return the strings of a Python list, as the exporter prints it; none where it is not one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _beside(
    node: onnx.NodeProto,
    index: int,
    uses: Mapping[str, Sequence[_Use]],
    initializers: set[str],
) -> list[str]:
    """Return the weight's name after the bias that its product is added to."""
    if node.op_type not in _PRODUCTS or index > 1:
        return []
    added = list(node.input[2:3])
    for reader, _ in uses.get(node.output[0], ()):
        if reader.op_type == "Add":
            added.extend(reader.input)
    return [
        name.removesuffix("bias") + "weight"
        for name in added
        if name in initializers and name.endswith(".bias")
    ]
