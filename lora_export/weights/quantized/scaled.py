"""Weights of one byte a value, int8 or FP8, with scales of any shape that divides them.

    compressed-tensors (int-quantized, float-quantized), FBGEMM, ModelOpt's FP8
        M.weight int8 or float8 [out, in], M.weight_scale [1], [out, 1], [out, groups] or blocks,
        M.weight_zero_point of the same shape where integers are not symmetric
    FP8 in blocks (DeepSeek, ``quant_method: fp8``)
        M.weight float8_e4m3fn [out, in], M.weight_scale_inv [⌈out/128⌉, ⌈in/128⌉]

    value[o, i] = (q[o, i] − z[o // h, i // w]) · s[o // h, i // w]

q and z are exact in float32; the product is rounded once to the dtype of the model. A scale_inv is
what a code is multiplied by, in spite of its name. Sources: compressed-tensors
``quantization/lifecycle/forward.py`` (``_dequantize``), DeepSeek-V3 ``inference/kernel.py``
(``weight_dequant``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.tensors import MemoryTensor, read_all
from lora_export.weights.quantized.panels import damaged, read_panel, read_scales
from lora_export.weights.quantized.weight import Form, QuantizedWeight

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.core.dtypes import Float32Array
    from lora_export.core.tensors import Tensor
    from lora_export.weights.quantized.stored import Stored
    from lora_export.weights.quantized.weight import Span

__all__ = ["BLOCK_FP8", "COMPRESSED", "OTHER_METHODS", "find_block_weights", "find_scaled_weights"]

COMPRESSED: Final = "compressed-tensors"
BLOCK_FP8: Final = "fp8"
OTHER_METHODS: Final = ("fbgemm_fp8", "fp8", "modelopt")
"""Methods that store FP8 as compressed-tensors does."""

_CODES: Final = {"int8": "int8", "float8_e4m3fn": "fp8", "float8_e5m2": "fp8"}
_BLOCK: Final = (128, 128)
_LARGEST: Final = 1 << 31
_MATRIX: Final = 2


@dataclass(frozen=True)
class _Scaled:
    """Codes of a byte, and scales of blocks of `height` by `width` of them."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    height: int
    width: int

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        values = read_panel(self.codes, rows, columns).astype(np.float32)
        high = (rows[0] // self.height, -(-rows[1] // self.height))
        wide = (columns[0] // self.width, -(-columns[1] // self.width))
        down = np.arange(*rows) // self.height - high[0]
        across = np.arange(*columns) // self.width - wide[0]
        if self.zeros is not None:
            zeros = read_panel(self.zeros, high, wide).astype(np.float32)
            values -= zeros[down][:, across]
        values *= read_scales(self.scales, high, wide)[down][:, across]
        return values


def find_scaled_weights(stored: Stored) -> Iterator[QuantizedWeight]:
    """Yield the weights of a byte a value with a ``weight_scale``.

    Raises:
        CheckpointError: A part is missing or of another shape.
    """
    for name, codes in stored.tensors.items():
        scale_name = f"{name}_scale"
        if codes.dtype.name not in _CODES or not name.endswith(".weight"):
            continue
        if scale_name not in stored.tensors:
            continue
        given = stored.settings.get("quant_method")
        method = given if given in OTHER_METHODS else COMPRESSED
        scales = _as_matrix(stored.part(scale_name), codes)
        height, width = _block(stored, scales, codes)
        parts = [codes, stored.tensors[scale_name]]
        zeros = stored.tensors.get(f"{name}_zero_point")
        if zeros is not None:
            parts.append(zeros)
            zeros = _as_matrix(zeros, codes)
            if zeros.shape != scales.shape or zeros.dtype.name not in {"int8", "uint8", "int32"}:
                msg = f"tensor {zeros.name!r} of the base is {zeros.dtype.name}"
                raise damaged(f"{msg} {list(zeros.shape)}; its scales are {list(scales.shape)}")
        yield _weight(stored, _Scaled(codes, scales, zeros, height, width), method, parts)


def find_block_weights(stored: Stored) -> Iterator[QuantizedWeight]:
    """Yield the FP8 weights with a ``weight_scale_inv`` for each block.

    Raises:
        CheckpointError: A part is missing or of another shape.
    """
    for name in stored.tensors:
        if not name.endswith(".weight_scale_inv"):
            continue
        codes = stored.part(name.removesuffix("_scale_inv"), "float8_e4m3fn")
        _require_matrix(codes)
        said = stored.settings.get("weight_block_size") or _BLOCK
        height, width = said if len(said) == _MATRIX and min(said) > 0 else _BLOCK
        wanted = (-(-codes.shape[0] // height), -(-codes.shape[1] // width))
        scales = stored.part(name, shape=wanted)
        codec = _Scaled(codes, scales, None, height, width)
        yield _weight(stored, codec, BLOCK_FP8, [codes, scales])


def _weight(stored: Stored, codec: _Scaled, method: str, parts: list[Tensor]) -> QuantizedWeight:
    codes = codec.codes
    group = codec.width if codec.width < codes.shape[1] else 0
    form = Form(method, _CODES[codes.dtype.name], 8, group)
    dtype = stored.dtype or codec.scales.dtype
    return QuantizedWeight(codes.name, dtype, codes.shape, form, tuple(parts), codec)


def _require_matrix(codes: Tensor) -> None:
    if len(codes.shape) != _MATRIX or 0 in codes.shape:
        msg = f"tensor {codes.name!r} of the base has the shape {list(codes.shape)}"
        raise damaged(f"{msg}; quantized weights are matrices")


def _as_matrix(tensor: Tensor, codes: Tensor) -> Tensor:
    """Return scales or zero points as a matrix: one value, or one for each output, is a column."""
    _require_matrix(codes)
    if len(tensor.shape) == _MATRIX:
        return tensor
    values = read_all(tensor) if tensor.shape in {(), (1,), codes.shape[:1]} else None
    if values is None:
        msg = f"tensor {tensor.name!r} of the base has the shape {list(tensor.shape)}"
        raise damaged(f"{msg}; {codes.name!r} is {list(codes.shape)}")
    return MemoryTensor(tensor.name, tensor.dtype, values.reshape(-1, 1))


def _block(stored: Stored, scales: Tensor, codes: Tensor) -> tuple[int, int]:
    """Return the height and width of what one scale is for.

    Blocks have the size that the config says, else 128 by 128: the last of a row or a column need
    not be full, so that their number does not tell it. Groups of inputs are all full.
    """
    said = _block_structure(stored.settings)
    rows, columns = codes.shape
    if said is None and scales.shape[0] in {1, rows}:
        found = (rows // scales.shape[0], columns // max(1, scales.shape[1]))
    else:
        found = said or _BLOCK
    if found[1] == 0 or scales.shape != (-(-rows // found[0]), -(-columns // found[1])):
        msg = f"tensor {scales.name!r} of the base has the shape {list(scales.shape)}"
        raise damaged(f"{msg}; {codes.name!r} is {list(codes.shape)}")
    return found


def _block_structure(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the size of blocks in compressed-tensors' groups, where all say the same."""
    groups = settings.get("config_groups")
    tables = [
        each.get("weights")
        for each in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(each, dict)
    ]
    said = [each.get("block_structure") for each in tables if isinstance(each, dict)]
    if not said or any(each != said[0] for each in said) or not isinstance(said[0], list):
        return None
    sizes = [size for size in said[0] if type(size) is int and 0 < size < _LARGEST]
    return (sizes[0], sizes[1]) if len(sizes) == len(said[0]) == _MATRIX else None
