"""The parameters that a graph reads, as values that every layer shares."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from lora_export.core.dtypes import DType, by_name

if TYPE_CHECKING:
    from lora_export.core.quantization import Quantized

__all__ = ["CAST", "COPY", "QUANTIZE", "TRANSPOSE", "Parameter"]

TRANSPOSE: Final = "transpose"
CAST: Final = "cast"
QUANTIZE: Final = "quantize"
COPY: Final = " (a copy)"
"""The end of an alias that is a further initializer of a user's graph and keeps its value."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model, and how the graph stores it.

    Attributes:
        name: The parameter's name in the model, which is the initializer's name in the graph.
        shape: The shape in the model and the checkpoint (``Linear``: ``[out, in]``).
        dtype: The dtype in the graph.
        module_type: The class of the module that owns it: ``Linear``, ``Conv1D``, ``Embedding``…
        transposed: Whether the graph stores it transposed, so that no node has to.
        aliases: Further names of the same parameter in the model (tied weights).
        computed: How its values follow from its shape, where transformers leaves it out of a
            checkpoint (`lora_export.core.computed_parameters`); None for every other parameter.
        quantized: How the graph stores it as integers and scales; None where it stores the values
            themselves. `dtype` is then that of the scales and of what the graph computes with.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    module_type: str
    transposed: bool = False
    aliases: tuple[str, ...] = ()
    computed: str | None = None
    quantized: Quantized | None = None

    @property
    def stored_dtype(self) -> DType:
        """The row of the dtype table."""
        return by_name(self.dtype)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the graph's layout."""
        return self.shape[::-1] if self.transposed else self.shape

    @property
    def stored_bytes(self) -> int:
        """The bytes of its values, or of its integers and scales."""
        itemsize, shape = self.stored_dtype.itemsize_bytes, self.stored_shape
        if self.quantized is None:
            return prod(shape) * itemsize
        scales = prod(self.quantized.scales_shape(shape)) * itemsize
        zeros = self.quantized.zero_points_bytes(shape)
        return self.quantized.integers_bytes(shape) + scales + zeros

    @property
    def is_buffer(self) -> bool:
        """Whether it is state that no optimizer trains (running means, position tables)."""
        return self.module_type == "buffer"
