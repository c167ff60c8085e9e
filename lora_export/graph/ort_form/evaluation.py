"""Values of a graph that follow from its inputs alone, computed by ONNX's reference in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from lora_export.graph.forms.node_slices import nodes_behind, read_by

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["InputSlice"]

Array = npt.NDArray[Any]


class InputSlice:
    """The part of a graph that one value follows from, where that is inputs and constants.

    Attributes:
        inputs: The names of the inputs.
        nodes: The nodes, in order.
    """

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        graph = model.graph
        self.nodes = nodes_behind(graph, [name])
        read = read_by(self.nodes) | ({name} if not self.nodes else set())
        constants = [each for each in graph.initializer if each.name in read]
        self._weights = [
            each.name for each in constants if each.data_location == onnx.TensorProto.EXTERNAL
        ]
        given = [each for each in graph.input if each.name in read]
        self.inputs = frozenset(each.name for each in given)
        wanted = onnx.ValueInfoProto(name=name)
        self._model = helper.make_model(
            helper.make_graph(self.nodes, "slice", given, [wanted], constants),
            opset_imports=model.opset_import,
            ir_version=model.ir_version,
        )
        self._evaluator: ReferenceEvaluator | None = None

    @property
    def reads_weights(self) -> bool:
        """Whether the value follows from parameters too, which have no values here."""
        return bool(self._weights)

    def __call__(self, feeds: Mapping[str, Array]) -> Array:
        """Return the value for these inputs; those that it does not follow from are left out."""
        if self._evaluator is None:
            self._evaluator = ReferenceEvaluator(self._model)
        (value,) = self._evaluator.run(
            None, {name: value for name, value in feeds.items() if name in self.inputs}
        )
        return np.asarray(value)
