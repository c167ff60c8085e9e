"""One table of the dtypes, and the conversions between stored values and float32.

Every format has its own word for a dtype; `DTYPES` is the only place where they meet. Arithmetic is
done in float32, the accumulation dtype of the merge; storage is whatever the graph declares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lora_export.core import halves
from lora_export.core.errors import InputError, UnsupportedError

__all__ = [
    "DTYPES",
    "DType",
    "Float32Array",
    "by_name",
    "cast",
    "require_finite",
    "to_float32",
]

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DType:
    """A stored dtype under the names that each format gives it.

    Attributes:
        name: Our name, which is torch's without ``torch.``.
        safetensors: The code in a safetensors header.
        onnx: The value of ``onnx.TensorProto.DataType``.
        numpy: The NumPy dtype with the same bytes.
        floating: Whether low-rank updates can be added to it.
    """

    name: str
    safetensors: str
    onnx: int
    numpy: np.dtype[Any]
    floating: bool

    @property
    def itemsize_bytes(self) -> int:
        """Bytes of one element."""
        return self.numpy.itemsize


DTYPES: Final[dict[str, DType]] = {
    row.name: row
    for row in (
        DType("float64", "F64", 11, np.dtype(np.float64), floating=True),
        DType("float32", "F32", 1, np.dtype(np.float32), floating=True),
        DType("float16", "F16", 10, np.dtype(np.float16), floating=True),
        DType("bfloat16", "BF16", 16, np.dtype(ml_dtypes.bfloat16), floating=True),
        DType("int64", "I64", 7, np.dtype(np.int64), floating=False),
        DType("int32", "I32", 6, np.dtype(np.int32), floating=False),
        DType("int16", "I16", 5, np.dtype(np.int16), floating=False),
        DType("int8", "I8", 3, np.dtype(np.int8), floating=False),
        DType("uint8", "U8", 2, np.dtype(np.uint8), floating=False),
        DType("bool", "BOOL", 9, np.dtype(np.bool_), floating=False),
        DType("float8_e4m3fn", "F8_E4M3", 17, np.dtype(ml_dtypes.float8_e4m3fn), floating=False),
        DType("float8_e5m2", "F8_E5M2", 19, np.dtype(ml_dtypes.float8_e5m2), floating=False),
    )
}
_ALIASES: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16"}
_HALVES: Final = (halves.FLOAT16, halves.BFLOAT16)


def by_name(name: str) -> DType:
    """Return the dtype called `name` (``float16``, ``fp16``, ``torch.float16``).

    Raises:
        UnsupportedError: No such dtype is known.
    """
    plain = name.removeprefix("torch.")
    found = DTYPES.get(_ALIASES.get(plain, plain))
    if found is None:
        msg = f"unknown dtype {name!r}"
        raise UnsupportedError(msg, hint=f"Known dtypes: {', '.join(DTYPES)}.")
    return found


def to_float32(values: npt.NDArray[Any]) -> Float32Array:
    """Return `values` as float32; exact for float16 and bfloat16, rounded for float64."""
    if values.dtype == np.float32:
        return values
    if values.dtype in _HALVES:
        return halves.widen(values)
    with np.errstate(over="ignore"):  # infinity is found and named by whoever reads the tensor
        return values.astype(np.float32)


def cast(values: npt.NDArray[Any], dtype: DType, *, name: str) -> npt.NDArray[Any]:
    """Round `values` to `dtype` (nearest, ties to even), refusing what it cannot hold.

    Args:
        values: Any shape and dtype.
        dtype: The dtype to store.
        name: The tensor's name, for the message.

    Raises:
        InputError: A finite value would become infinite.
    """
    if values.dtype == dtype.numpy:
        return values
    if dtype.numpy in _HALVES and values.dtype == np.float32:
        stored: npt.NDArray[Any] = halves.narrow(values, dtype.numpy)
    elif dtype.numpy == np.float32 and values.dtype in _HALVES:
        return halves.widen(values)
    else:
        with np.errstate(over="ignore"):
            stored = values.astype(dtype.numpy)
    if dtype.floating:
        require_finite(stored, values, dtype, name=name)
    return stored


def require_finite(
    stored: npt.NDArray[Any], exact: npt.NDArray[Any], dtype: DType, *, name: str
) -> None:
    """Require that `stored` is finite wherever `exact` is.

    Raises:
        InputError: A finite value became infinite.
    """
    if halves.all_finite(stored):
        return
    lost = np.isfinite(exact) & ~np.isfinite(stored)
    if bool(lost.any()):
        worst = float(np.abs(exact[lost].astype(np.float64)).max())
        msg = (
            f"{dtype.name} cannot hold {int(lost.sum())} value(s) of tensor {name!r} "
            f"(largest magnitude {worst:.6g})"
        )
        raise InputError(
            msg, hint="Use --dtype bfloat16 (on a target that has it) or --dtype float32."
        )
