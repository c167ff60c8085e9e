"""The reads of a weight by the nodes of a graph, which decide how it can be quantized.

product       x W             MatMul, Gemm                        W [K, N]
transposed    x Wᵀ            Gemm(transB=1): a tied head         W [N, K]
rows          W[indices]      Gather along the first axis         W [rows, K]
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from onnx import helper

from lora_export.graph.nodes.weight_uses import readers_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

__all__ = ["Read", "WeightRead", "reads_of"]

_WEIGHT: Final = 1
"""The position of the weight among the inputs of a product."""
_PLAIN: Final = {"alpha": 1.0, "beta": 1.0, "transA": 0}


class Read(Enum):
    """The operation that a node applies to a weight."""

    PRODUCT = "product"
    TRANSPOSED = "transposed"
    ROWS = "rows"


@dataclass(frozen=True)
class WeightRead:
    """A node that reads a weight.

    Attributes:
        at: The node's position.
        read: What it computes; None for anything that no quantized weight serves.
        operator: The node's operator, for messages.
    """

    at: int
    read: Read | None
    operator: str


def reads_of(nodes: Sequence[onnx.NodeProto]) -> dict[str, list[WeightRead]]:
    """Return the nodes that read each value, subgraphs included."""
    return {
        name: [WeightRead(at, _kind(nodes[at], name), nodes[at].op_type) for at in positions]
        for name, positions in readers_of(nodes).items()
    }


def _kind(node: onnx.NodeProto, name: str) -> Read | None:
    inputs = list(node.input)
    if node.domain not in {"", "ai.onnx"} or inputs.count(name) != 1:
        return None
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type == "MatMul" and inputs.index(name) == _WEIGHT:
        return Read.PRODUCT
    if node.op_type == "Gemm" and inputs.index(name) == _WEIGHT:
        if any(attributes.get(key, plain) != plain for key, plain in _PLAIN.items()):
            return None
        return Read.TRANSPOSED if attributes.get("transB", 0) else Read.PRODUCT
    if node.op_type == "Gather" and inputs.index(name) == 0 and attributes.get("axis", 0) == 0:
        return Read.ROWS
    return None
