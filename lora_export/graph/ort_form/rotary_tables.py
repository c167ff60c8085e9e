"""Tables of cosines and sines for every position, as `GroupQueryAttention` looks them up.

A traced graph computes the angles of the positions that it is given, in every run. The nodes that
do so are copied with the positions 0 to n - 1 in place of ``position_ids``: they follow from
constants alone, so that ONNX Runtime computes them once, as it opens the graph, and the file
stays as small as it was.

    position_ids → … → cos [batch, new, width / 2]     →     0 … n-1 → … → cos [n, width / 2]

Frequencies that depend on the length of the text (``longrope``, ``dynamic``) have no such table:
the angles of a position differ with the other positions of the run. The rotation stays outside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lora_export.graph.ort_form.evaluation import InputSlice

if TYPE_CHECKING:
    from lora_export.graph.ort_form.indexed_graph import IndexedGraph

__all__ = ["POSITIONS", "RotaryTables"]

POSITIONS: Final = "position_ids"
_PREFIX: Final = "rotary."
_ALL: Final = "rotary.positions"
_WIDTH_STEP: Final = 8
"""The operator takes tables whose width is a multiple of this."""


@dataclass
class RotaryTables:
    """The tables of one graph, made as they are asked for.

    Attributes:
        model: The graph, as it was traced.
        index: The same, indexed.
        positions: How many positions a text has at most; None where the config does not say.
        nodes: The nodes that compute the tables, for the beginning of the graph.
        constants: The constants that they read and that the graph does not have.
    """

    model: onnx.ModelProto
    index: IndexedGraph
    positions: int | None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    _tables: dict[str, tuple[str, int] | None] = field(default_factory=dict)

    def table_of(self, value: str) -> tuple[str, int] | None:
        """Return the table ``[positions, width]`` of a value ``[batch, new, width]``.

        Args:
            value: The cosines or sines of the positions of a run.

        Returns:
            The name of the table and its width; None where there is none.
        """
        if value not in self._tables:
            self._tables[value] = self._made(value)
        return self._tables[value]

    def _made(self, value: str) -> tuple[str, int] | None:
        expand = self.index.producer(value, "Expand")  # for each row of the batch
        source = value if expand is None else expand.input[0]
        angles = InputSlice(self.model, source)
        if angles.reads_weights or angles.inputs != {POSITIONS} or self.positions is None:
            return None
        width = self._width(angles)
        if width is None or width % _WIDTH_STEP:
            return None
        if not self.nodes:
            self._begin()
        made = {name for node in self.nodes for name in node.output}
        for node in angles.nodes:
            if f"{_PREFIX}{node.output[0]}" not in made:
                self.nodes.append(_copied(node, {each for n in angles.nodes for each in n.output}))
        table = f"{_PREFIX}{value}.table"
        self.nodes.append(_named("Reshape", [f"{_PREFIX}{source}", f"{_ALL}.flat.{width}"], table))
        self._constant(f"{_ALL}.flat.{width}", [-1, width])
        return table, width

    def _width(self, angles: InputSlice) -> int | None:
        """Return the width of a table; None where a row depends on the other positions."""
        assert self.positions is not None  # noqa: S101  (the caller looked)
        some = sorted({0, 1, 2, 3, 5, 7, self.positions // 2, self.positions - 1})
        some = [each for each in some if each < self.positions]
        together = angles({POSITIONS: np.array([some], np.int64)})
        if together.ndim != 3 or together.shape[:2] != (1, len(some)):  # noqa: PLR2004
            return None
        alone = [angles({POSITIONS: np.array([[each]], np.int64)})[0, 0] for each in some]
        return int(together.shape[2]) if np.array_equal(together[0], np.stack(alone)) else None

    def _begin(self) -> None:
        """Make the positions of the tables, ``[1, n]``."""
        for name, number in ((".start", 0), (".end", self.positions), (".step", 1)):
            self.constants.append(numpy_helper.from_array(np.array(number, np.int64), _ALL + name))
        self._constant(f"{_ALL}.row", [0])
        ends = [f"{_ALL}.start", f"{_ALL}.end", f"{_ALL}.step"]
        self.nodes.append(_named("Range", ends, f"{_ALL}.range"))
        self.nodes.append(_named("Unsqueeze", [f"{_ALL}.range", f"{_ALL}.row"], _ALL))

    def _constant(self, name: str, values: list[int]) -> None:
        if all(each.name != name for each in self.constants):
            self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))


def _named(kind: str, inputs: list[str], output: str) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=output)


def _copied(node: onnx.NodeProto, made: set[str]) -> onnx.NodeProto:
    """Return a copy of a node for all positions; `made` are the values that have a copy."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{_PREFIX}{node.name}"
    for at, name in enumerate(node.input):
        if name == POSITIONS:
            copy.input[at] = _ALL
        elif name in made:
            copy.input[at] = f"{_PREFIX}{name}"
    for at, name in enumerate(node.output):
        copy.output[at] = f"{_PREFIX}{name}"
    return copy
