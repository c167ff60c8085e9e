"""The ``gguf`` package: names of tensors, and the arithmetic of GGML's types.

It is imported here and nowhere else; files are read by `lora_export.core.gguf_file`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.errors import MissingRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array

__all__ = ["GgmlType", "dequantize", "ggml_types", "require_gguf", "tensor_names"]

_FLOATS: Final = frozenset({"F32", "F16", "F64", "BF16"})
_VALUES: Final = 1 << 17
"""How many values are computed at once: some types need 60 bytes a value meanwhile."""


@dataclass(frozen=True)
class GgmlType:
    """A type of GGML in which values are stored in blocks.

    Attributes:
        number: Its number in files.
        name: Its name in lower case: ``q4_k``.
        values: The values of a block.
        count_bytes: The bytes of a block.
    """

    number: int
    name: str
    values: int
    count_bytes: int

    @property
    def bits(self) -> int:
        """The bits of a code, as the name has them."""
        return next(int(each) for each in self.name if each.isdigit())


def require_gguf(what: str) -> None:
    """Require the ``gguf`` package.

    Args:
        what: What is GGUF, for the message.

    Raises:
        MissingRuntimeError: It is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        msg = f"{what} is GGUF, and the gguf package is not installed"
        raise MissingRuntimeError(msg, hint="Install it: pip install 'gguf>=0.17'")


def ggml_types() -> Mapping[int, GgmlType]:
    """Return the types that the package dequantizes, by their numbers."""
    import gguf
    from gguf import quants

    known = [kind for kind in quants._type_traits if kind.name not in _FLOATS]  # noqa: SLF001  (no public list)
    sizes = gguf.GGML_QUANT_SIZES
    return {int(kind): GgmlType(int(kind), kind.name.lower(), *sizes[kind]) for kind in known}


def dequantize(blocks: npt.NDArray[np.uint8], kind: GgmlType) -> Float32Array:
    """Return the values of blocks in float32, ``[n, bytes]`` → ``[n, values]``."""
    import gguf

    number = gguf.GGMLQuantizationType(kind.number)
    found = np.empty((blocks.shape[0], kind.values), np.float32)
    step = _VALUES // kind.values
    for first in range(0, blocks.shape[0], step):
        part = blocks[first : first + step].reshape(1, -1)  # one row: the package loops over rows
        found[first : first + step] = gguf.dequantize(part, number).reshape(-1, kind.values)
    return found


def tensor_names(architecture: str, paths: Iterable[str]) -> dict[str, str]:
    """Return the names in Hugging Face by those in GGUF, of modules of layer 0 and the whole.

    Args:
        architecture: ``general.architecture``; one that the package knows.
        paths: The modules in Hugging Face, those of layer 0 for all layers.
    """
    import gguf

    code = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table: Any = gguf.get_tensor_name_map(code, 1)
    found = {table.get_name(path): path for path in paths}
    return {name: path for name, path in found.items() if name is not None}
