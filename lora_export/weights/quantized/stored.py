"""The tensors of a quantized checkpoint, as the readers of its formats look for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.dtypes import DTYPES, DType
from lora_export.weights.quantized.panels import damaged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.tensors import Tensor

__all__ = ["Stored", "model_dtype"]

_DTYPE_KEYS: Final = ("dtype", "torch_dtype")
_SECTIONS: Final = ("text_config",)


@dataclass(frozen=True)
class Stored:
    """The tensors of a quantized checkpoint.

    Attributes:
        tensors: By their names in the files.
        settings: What its config says about quantization; empty where it says nothing.
        dtype: The dtype of the model; None where the config names none.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    settings: Mapping[str, Any]
    dtype: DType | None

    def part(
        self, name: str, dtype: str | None = None, shape: tuple[int, ...] | None = None
    ) -> Tensor:
        """Return a tensor that a weight is stored in.

        Args:
            name: Its name.
            dtype: The dtype that it must have; None for any dtype of floats.
            shape: The shape that it must have; None for any.

        Raises:
            CheckpointError: There is none, or it has another dtype or shape.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            msg = f"the base has no tensor {name!r}, which belongs to a quantized weight"
            raise damaged(msg)
        fits = tensor.dtype.floating if dtype is None else tensor.dtype.name == dtype
        if not fits or (shape is not None and tensor.shape != shape):
            wanted = f"{dtype or 'floats'}{'' if shape is None else f' {list(shape)}'}"
            msg = f"tensor {name!r} of the base is {tensor.dtype.name} {list(tensor.shape)}"
            raise damaged(f"{msg}; a quantized weight needs {wanted} there")
        return tensor

    def all_or_none(self, *names: str) -> tuple[str, ...] | None:
        """Return names of which all are there; None where none is.

        Raises:
            CheckpointError: Some are there.
        """
        if not any(name in self.tensors for name in names):
            return None
        for name in names:
            self.part(name)
        return names


def model_dtype(config: Mapping[str, Any]) -> DType | None:
    """Return the dtype that a config names for the weights of the model."""
    sections = (config, *(config.get(name) for name in _SECTIONS))
    for table in (each for each in sections if isinstance(each, dict)):
        for key in _DTYPE_KEYS:
            name = str(table.get(key)).removeprefix("torch.")
            if name in DTYPES and DTYPES[name].floating:
                return DTYPES[name]
    return None
