"""Layers of two kinds, drawn by hand: what is stamped is the graph of them all, or is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import pytest

from lora_export.core.parameters import Parameter
from lora_export.graph.optimize.layer_parts import NotRepeatingError
from lora_export.graph.optimize.replicate_layers import replicate_layers
from lora_export.graph.spec.repeat import Repeat

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = (0, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 11)
KEPT = (0, 1, 2, 3, 4, 8, 10, 11)
NAMES = {1: "plain", 2: "masked"}


class Drawing:
    """A graph of layers ``x + f(x · weight)``; a masked one adds what the first such one makes."""

    def __init__(self, kinds: Sequence[int], **twist: Any) -> None:
        self.x, self.mask = self._value("x"), self._value("mask")
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self._made: ir.Value | None = None
        self._twist = twist
        states, sizes = [self.x], [self.x]
        for number, kind in enumerate(kinds):
            self._layer(number, kind, states, sizes)
        output = self._add("Identity", states[-1])
        output.name = "y"
        graph = ir.Graph([self.x, self.mask], [output], nodes=self.nodes,
                         initializers=self.weights, opset_imports={"": 20})  # fmt: skip
        self.model = ir.Model(graph, ir_version=10)
        self.parameters = [Parameter(str(each.name), (4, 4), "float32", "Linear", ())
                           for each in self.weights]  # fmt: skip

    def _layer(self, number: int, kind: int, states: list[ir.Value], sizes: list[ir.Value]) -> None:
        weight = self._value(f"h.{number}.weight")
        self.weights.append(weight)
        product = self._add("MatMul", states[-1], weight)
        if NAMES.get(kind) == "masked":
            self._made = self._made or self._add("Sqrt", self.mask)
            product = self._add("Mul", self._add("Add", product, self._made), sizes[-1])
        elif number == self._twist.get("odd"):
            product = self._add("Abs", product)
        sizes.append(self._add("Neg", product))
        skipped = number == self._twist.get("skips")
        states.append(self._add("Add", states[-3 if skipped else -1], product))

    def _value(self, name: str) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape([4, 4]), type=ir.TensorType(ir.DataType.FLOAT))

    def _add(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        node = ir.node(op_type, inputs, name=f"n{len(self.nodes)}")
        self.nodes.append(node)
        node.outputs[0].name = f"v{len(self.nodes)}"
        return node.outputs[0]


def described(model: ir.Model) -> list[tuple[str, list[int | str]]]:
    """Return the nodes in order; a value that is computed is called by its node's number."""
    number: dict[ir.Value, int] = {}
    found = []
    for node in model.graph:
        reads = [number.get(v, str(v.name)) for v in node.inputs if v is not None]
        found.append((node.op_type, reads))
        number[node.outputs[0]] = len(found)
    return found


def stamped(kept: Sequence[int] = KEPT, **twist: Any) -> tuple[ir.Model, tuple[Parameter, ...]]:
    drawing = Drawing([KINDS[number] for number in kept], **twist)
    repeat = Repeat("h", KINDS, tuple(kept))
    return drawing.model, replicate_layers(drawing.model, drawing.parameters, [repeat])


def test_layers_of_two_kinds_become_the_graph_of_all_of_them() -> None:
    whole = Drawing(KINDS)
    model, parameters = stamped()
    assert described(model) == described(whole.model)
    assert parameters == tuple(sorted(whole.parameters, key=lambda each: each.name))
    assert {each.name for each in parameters} == set(model.graph.initializers)


def test_list_of_layers_that_a_graph_does_not_read_is_passed_over() -> None:
    drawing = Drawing(KINDS)
    found = replicate_layers(drawing.model, drawing.parameters, [Repeat("other", KINDS, KEPT)])
    assert len(found) == len(KINDS)
    assert described(drawing.model) == described(Drawing(KINDS).model)


@pytest.mark.parametrize("twist", [{"odd": 3}, {"skips": 4}, {"skips": 6}], ids=str)
def test_layer_that_is_like_no_other_of_its_kind_is_refused(twist: dict[str, int]) -> None:
    with pytest.raises(NotRepeatingError):
        stamped(**twist)
