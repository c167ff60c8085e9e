"""What a graph can be fed: inputs that are known here, axes that are fixed, the output to compare.

A traced graph takes any batch and length. One that the user brought may have fixed axes, further
inputs and other names for its outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.base.files import resolve_inside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.base.manifest import GraphRecord

__all__ = ["Feeding", "feeding_of"]

_KNOWN: Final = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_SHOWN: Final = 3


@dataclass(frozen=True)
class Feeding:
    """The inputs and outputs of a graph.

    Attributes:
        inputs: What it has to be given, in its order; initializers that may be replaced are not.
        batch: The batch that it is made for; None for any.
        length: The length that it is made for; None for any.
        outputs: What it returns.
    """

    inputs: tuple[str, ...]
    batch: int | None
    length: int | None
    outputs: tuple[str, ...]

    @property
    def reason(self) -> str | None:
        """Why the graph cannot be fed here; None where it can."""
        if unknown := [name for name in self.inputs if name not in _KNOWN]:
            return f"the graph takes {', '.join(unknown[:_SHOWN])}, which is not fed here"
        return None if self.inputs else "the graph has no inputs"

    def output_for(self, wanted: str) -> str:
        """Return the output called `wanted`, else the first: there models return their result."""
        return wanted if wanted in self.outputs else self.outputs[0]

    def shapes(self, wanted: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Return batches and lengths like those `wanted` that the graph takes, each once."""
        fixed = ((self.batch or batch, self.length or length) for batch, length in wanted)
        return tuple(dict.fromkeys(fixed))


def feeding_of(root: Path, record: GraphRecord) -> Feeding:
    """Read the inputs and outputs of a graph, without opening a session."""
    import onnx

    path = resolve_inside(root, record.onnx)
    graph = onnx.load(str(path), load_external_data=False).graph
    own = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in own]
    axes: list[int | None] = [None, None]
    for each in inputs:
        if each.name in _KNOWN:
            dims = each.type.tensor_type.shape.dim[:2]
            for position, axis in enumerate(dims):
                axes[position] = axes[position] or axis.dim_value or None
    return Feeding(
        tuple(each.name for each in inputs), axes[0], axes[1], tuple(e.name for e in graph.output)
    )
