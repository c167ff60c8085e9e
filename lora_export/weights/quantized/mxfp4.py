"""MXFP4, in which gpt-oss stores its experts.

    P_blocks  uint8 [E, O, G, 16]: codes of four bits, low half first: sign, two of exponent, one
              of mantissa (E2M1)
    P_scales  uint8 [E, O, G]: exponents, 127 added

    value[e, 32 g + j, o] = E2M1[code[e, o, g, j]] · 2^(scale[e, o, g] − 127)      P [E, 32 G, O]

Every value is exact in bfloat16. Sources: OCP Microscaling Formats v1.0, section 5.3;
transformers ``integrations/mxfp4.py`` (``convert_moe_packed_tensors``).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import DTYPES, Float32Array
from lora_export.weights.quantized.panels import damaged, low_half_first, read_elements
from lora_export.weights.quantized.weight import Form, QuantizedWeight

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from lora_export.core.tensors import Tensor
    from lora_export.weights.quantized.stored import Stored
    from lora_export.weights.quantized.weight import Span

    Array = npt.NDArray[Any]

__all__ = ["MXFP4", "find_mxfp4_weights"]

MXFP4: Final = "mxfp4"
_BLOCKS: Final = "_blocks"
_GROUP: Final = 32
_GROUP_BYTES: Final = 16
_BIAS: Final = 127
_NAN: Final = 255
_AXES: Final = 4
_HALVES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES: Final = np.array([*_HALVES, *(-each for each in _HALVES)], np.float32)


class _LastRead(threading.local):
    """The bytes that each thread has read last: rows of floats are columns of what is stored."""

    key: tuple[str, int] = ("", 0)
    values: Array

    def read(self, tensor: Tensor, first: int, last: int) -> Array:
        """Return elements `first` to `last` of a tensor of bytes."""
        key = (tensor.name, first)
        if self.key != key:
            self.values = read_elements(tensor, first, last)
            self.key = key
        return self.values


@dataclass(frozen=True)
class _Experts:
    """The codes of the experts of one weight, and a place for those of the last expert."""

    blocks: Tensor
    scales: Tensor
    last_read: _LastRead = field(repr=False, compare=False)

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``.

        A row is an input of an expert, a column an output.
        """
        inputs = self.blocks.shape[2] * _GROUP
        found = np.empty((rows[1] - rows[0], columns[1] - columns[0]), np.float32)
        at = rows[0]
        while at < rows[1]:
            expert, first = divmod(at, inputs)
            last = min(inputs, first + rows[1] - at)
            part = self._expert(expert, (first, last), columns)
            found[at - rows[0] : at - rows[0] + last - first] = part.T
            at += last - first
        return found

    def _expert(self, expert: int, inputs: Span, outputs: Span) -> Float32Array:
        """Return values of one expert, ``[outputs, inputs]``."""
        _, rows, groups, size = self.blocks.shape
        begin, end = inputs[0] // _GROUP, -(-inputs[1] // _GROUP)
        count = rows * groups
        raw = self.last_read.read(self.blocks, expert * count * size, (expert + 1) * count * size)
        codes = raw.reshape(rows, -1)[slice(*outputs), begin * size : end * size]
        span = (expert * rows + outputs[0], expert * rows + outputs[1])
        exponents = read_elements(self.scales, span[0] * groups, span[1] * groups)
        exponents = exponents.reshape(-1, groups)[:, begin:end]
        if bool((exponents == _NAN).any()):
            msg = f"tensor {self.scales.name!r} of the base holds 255, which is NaN"
            raise damaged(msg)
        values = _VALUES[low_half_first(codes)].reshape(codes.shape[0], end - begin, _GROUP)
        scale = np.ldexp(np.float32(1), exponents.astype(np.int32) - _BIAS).astype(np.float32)
        exact = (values * scale[:, :, None]).reshape(codes.shape[0], -1)
        return exact[:, inputs[0] - begin * _GROUP : inputs[1] - begin * _GROUP]


def find_mxfp4_weights(stored: Stored) -> Iterator[QuantizedWeight]:
    """Yield the weights that are stored as blocks of 32 values.

    Raises:
        CheckpointError: A part is missing or of another shape.
    """
    last_read = _LastRead()
    for name in stored.tensors:
        if not name.endswith(_BLOCKS) or name.removesuffix(_BLOCKS) in stored.tensors:
            continue
        plain = name.removesuffix(_BLOCKS)
        if f"{plain}_scales" not in stored.tensors and stored.tensors[name].dtype.name != "uint8":
            continue
        blocks = stored.part(name, "uint8")
        shape = blocks.shape
        if len(shape) != _AXES or shape[3] != _GROUP_BYTES or 0 in shape:
            msg = f"tensor {name!r} of the base has the shape {list(shape)}"
            raise damaged(f"{msg}; MXFP4 is [experts, outputs, groups, {_GROUP_BYTES}]")
        scales = stored.part(f"{plain}_scales", "uint8", shape[:3])
        experts, outputs, groups, _ = shape
        form = Form(MXFP4, MXFP4, 4, _GROUP)
        yield QuantizedWeight(
            plain,
            stored.dtype or DTYPES["bfloat16"],
            (experts, groups * _GROUP, outputs),
            form,
            (blocks, scales),
            _Experts(blocks, scales, last_read),
        )
