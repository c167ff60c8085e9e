"""Weights in groups of inputs, packed into 32-bit words: GPTQ and AWQ.

    value[o, i] = (q[i, o] − z[g(i), o]) · s[g(i), o]        scales: floats [groups, out]

    GPTQ   qweight int32 [in · b / 32, out]: a stream of b bits along the inputs
           qzeros  int32 [groups, out · b / 32]: a stream along the outputs
           g_idx   int32 [in]: the group of each input, in any order (``desc_act``)
           z = stored + 1 (``checkpoint_format: gptq``) or stored (``gptq_v2``), modulo 2^b
    AWQ    qweight int32 [in, out / 8], qzeros int32 [groups, out / 8]: 4 bits, the eight values of
           a word in the order 0, 4, 1, 5, 2, 6, 3, 7
           g(i) = i // (in / groups)

Scales are rounded to the dtype of the model first, where that is another, as GPTQModel loads them.
q − z is exact in float32, and the product is rounded once. Sources: AutoGPTQ
``qlinear_cuda_old.py`` and GPTQModel ``utils/model.py`` (``convert_gptq_v1_to_v2_format``),
AutoAWQ ``utils/packing_utils.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import cast, to_float32
from lora_export.core.errors import UnsupportedError
from lora_export.core.shown_value import shown
from lora_export.weights.quantized.panels import (
    damaged,
    read_elements,
    read_panel,
    read_scales,
    unpack_stream,
    word_span,
)
from lora_export.weights.quantized.weight import Form, QuantizedWeight

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from lora_export.core.dtypes import DType, Float32Array
    from lora_export.core.tensors import Tensor
    from lora_export.weights.quantized.stored import Stored
    from lora_export.weights.quantized.weight import Span

    Array = npt.NDArray[Any]

__all__ = ["AWQ", "GPTQ", "AwqCodec", "GptqCodec", "find_awq_weights", "find_gptq_weights"]

GPTQ: Final = "gptq"
AWQ: Final = "awq"
_CODES: Final = ".qweight"
_WORD_BITS: Final = 32
_MATRIX: Final = 2
_BITS: Final = (2, 3, 4, 8)
_AWQ_BITS: Final = 4
_AWQ_PER_WORD: Final = 8
_AWQ_SHIFTS: Final = np.array([0, 16, 4, 20, 8, 24, 12, 28], np.uint32)
"""The place in a word of each of its eight values, whose order is 0, 2, 4, 6, 1, 3, 5, 7."""

_FORMATS: Final = {"gptq": 1, "gptq_v2": 0}
"""The offset of stored zero points, by checkpoint format."""


@dataclass(frozen=True)
class GptqCodec:
    """A stream of codes along the inputs, and the group of each input.

    Attributes:
        codes: ``qweight``.
        zeros: ``qzeros``.
        scales: ``scales``.
        order: ``g_idx``; None where groups follow each other.
        bits: The bits of a code.
        group_size: The inputs of a group, where there is no `order`.
        offset: The number that is added to stored zero points.
        dtype: The dtype of the model.
    """

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    order: Tensor | None
    bits: int
    group_size: int
    offset: int
    dtype: DType

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        groups = self.groups(columns)
        q = self.integers(rows, columns)
        first, last = int(groups.min()), int(groups.max()) + 1
        scales = _read_scales(self, (first, last), rows)
        zeros = self.zero_points((first, last), rows)
        return _values(q, zeros, scales, groups - first)

    def integers(self, rows: Span, columns: Span) -> Array:
        """Return codes of outputs `rows` and inputs `columns`, ``[columns, rows]``."""
        words, first = word_span(columns, self.bits)
        stream = unpack_stream(read_panel(self.codes, words, rows), self.bits)
        return stream[columns[0] - first : columns[1] - first]

    def zero_points(self, groups: Span, rows: Span) -> Array:
        """Return zero points as the formula has them, ``[groups, rows]``."""
        words, first = word_span(rows, self.bits)
        packed = np.ascontiguousarray(read_panel(self.zeros, groups, words).T)
        stored = unpack_stream(packed, self.bits)[rows[0] - first : rows[1] - first].T
        return (stored + np.uint8(self.offset)) & np.uint8((1 << self.bits) - 1)

    def group_scales(self, rows: Span, groups: Span) -> Float32Array:
        """Return scales as the model has them, ``[groups, rows]``."""
        return _read_scales(self, groups, rows)

    def groups(self, columns: Span) -> Array:
        """Return the group of each input.

        Raises:
            CheckpointError: ``g_idx`` names a group that does not exist.
        """
        if self.order is None:
            return np.arange(*columns) // self.group_size
        found = read_elements(self.order, *columns)
        count = self.scales.shape[0]
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < count:
            wrong = found[(found < 0) | (found >= count)][0]
            msg = f"tensor {self.order.name!r} of the base names group {wrong} of {count}"
            raise damaged(msg)
        return found


@dataclass(frozen=True)
class AwqCodec:
    """Words of eight outputs each, in AWQ's order."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    group_size: int
    dtype: DType

    @property
    def bits(self) -> int:
        """The bits of a code."""
        return _AWQ_BITS

    @property
    def order(self) -> None:
        """Groups follow each other."""

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        groups = np.arange(*columns) // self.group_size
        first, last = int(groups[0]), int(groups[-1]) + 1
        scales = _read_scales(self, (first, last), rows)
        zeros = self.zero_points((first, last), rows)
        return _values(self.integers(rows, columns), zeros, scales, groups - first)

    def integers(self, rows: Span, columns: Span) -> Array:
        """Return codes of outputs `rows` and inputs `columns`, ``[columns, rows]``."""
        return _awq_panel(self.codes, columns, rows)

    def zero_points(self, groups: Span, rows: Span) -> Array:
        """Return zero points, ``[groups, rows]``."""
        return _awq_panel(self.zeros, groups, rows)

    def group_scales(self, rows: Span, groups: Span) -> Float32Array:
        """Return scales as the model has them, ``[groups, rows]``."""
        return _read_scales(self, groups, rows)


def _awq_panel(packed: Tensor, rows: Span, columns: Span) -> Array:
    """Return rows of a packed matrix, ``[rows, columns]``, where a word holds eight columns."""
    first, last = columns[0] // _AWQ_PER_WORD, -(-columns[1] // _AWQ_PER_WORD)
    words = read_panel(packed, rows, (first, last)).astype(np.uint32)
    values = (words[..., None] >> _AWQ_SHIFTS & np.uint32(15)).astype(np.uint8)
    skipped = columns[0] - first * _AWQ_PER_WORD
    return values.reshape(words.shape[0], -1)[:, skipped : skipped + columns[1] - columns[0]]


def _read_scales(codec: GptqCodec | AwqCodec, groups: Span, rows: Span) -> Float32Array:
    """Return scales as the model has them, ``[groups, rows]``."""
    exact = read_scales(codec.scales, groups, rows)
    return to_float32(cast(exact, codec.dtype, name=codec.scales.name))


def _values(q: Array, zeros: Array, scales: Float32Array, groups: Array) -> Float32Array:
    """Return ``(q − z) · s`` of each group, ``[inputs, outputs]`` → ``[outputs, inputs]``."""
    exact = q.astype(np.float32)
    exact -= zeros.astype(np.float32)[groups]
    exact *= scales[groups]
    return exact.T


def find_gptq_weights(stored: Stored) -> Iterator[QuantizedWeight]:
    """Yield the weights that are packed along their inputs.

    Raises:
        CheckpointError: A part is missing or of another shape.
        UnsupportedError: A number of bits or a layout that is not known.
    """
    for module, codes, scales, zeros in _modules(stored):
        if codes.shape[1] != scales.shape[1]:
            continue
        groups, outputs = scales.shape
        bits = zeros.shape[1] * _WORD_BITS // max(1, outputs)
        _require_bits(module, bits)
        inputs = codes.shape[0] * _WORD_BITS // bits
        _require_shape(codes, (-(-inputs * bits // _WORD_BITS), outputs))
        _require_shape(zeros, (groups, outputs * bits // _WORD_BITS))
        order = _order(stored, module, inputs)
        size = _group_size(stored, inputs, groups)
        dtype = stored.dtype or scales.dtype
        codec = GptqCodec(codes, zeros, scales, order, bits, size, _offset(stored), dtype)
        yield _weight(module, inputs, codec)


def find_awq_weights(stored: Stored) -> Iterator[QuantizedWeight]:
    """Yield the weights that are packed along their outputs.

    Raises:
        CheckpointError: A part is missing or of another shape.
        UnsupportedError: A layout that is not known.
    """
    for module, codes, scales, zeros in _modules(stored):
        if codes.shape[1] == scales.shape[1]:
            continue
        version = stored.settings.get("version") or "gemm"
        if stored.settings.get("quant_method") == AWQ and str(version).lower() != "gemm":
            msg = f"the base is quantized by AWQ in the layout {shown(version)}"
            raise UnsupportedError(msg, hint="The layout gemm is read: save it again as that.")
        groups, outputs = scales.shape
        inputs = codes.shape[0]
        _require_shape(codes, (inputs, outputs // _AWQ_PER_WORD))
        _require_shape(zeros, (groups, outputs // _AWQ_PER_WORD))
        if groups == 0 or inputs % groups or outputs % _AWQ_PER_WORD:
            msg = f"tensor {scales.name!r} of the base has the shape {list(scales.shape)}"
            raise damaged(f"{msg}, which does not divide {codes.name!r}, {list(codes.shape)}")
        dtype = stored.dtype or scales.dtype
        codec = AwqCodec(codes, zeros, scales, inputs // groups, dtype)
        yield _weight(module, inputs, codec)


def _modules(stored: Stored) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yield each module that has packed codes, with its codes, scales and zero points."""
    for name in stored.tensors:
        if not name.endswith(_CODES):
            continue
        module = name.removesuffix(_CODES)
        codes = stored.part(name, "int32")
        scales = stored.part(f"{module}.scales")
        zeros = stored.part(f"{module}.qzeros", "int32")
        for each in (codes, scales, zeros):
            if len(each.shape) != _MATRIX or 0 in each.shape:
                msg = f"tensor {each.name!r} of the base has the shape {list(each.shape)}"
                raise damaged(f"{msg}; a matrix is expected")
        yield module, codes, scales, zeros


def _weight(module: str, inputs: int, codec: GptqCodec | AwqCodec) -> QuantizedWeight:
    parts: tuple[Tensor, ...] = (codec.codes, codec.zeros, codec.scales)
    bits, method = _AWQ_BITS, AWQ
    if isinstance(codec, GptqCodec):
        bits, method = codec.bits, GPTQ
        parts = parts if codec.order is None else (*parts, codec.order)
    return QuantizedWeight(
        f"{module}.weight",
        codec.dtype,
        (codec.scales.shape[1], inputs),
        Form(method, f"int{bits}", bits, codec.group_size),
        parts,
        codec,
    )


def _order(stored: Stored, module: str, inputs: int) -> Tensor | None:
    """Return ``g_idx``, which only a checkpoint may leave out that says that it has no order."""
    name = f"{module}.g_idx"
    if name not in stored.tensors and stored.settings.get("desc_act") is False:
        return None
    return stored.part(name, "int32", (inputs,))


def _group_size(stored: Stored, inputs: int, groups: int) -> int:
    """Return the size of groups, of which the last need not be full."""
    said = stored.settings.get("group_size")
    if isinstance(said, int) and 0 < said <= inputs and -(-inputs // said) == groups:
        return said
    return -(-inputs // groups)


def _offset(stored: Stored) -> int:
    """Return what is added to stored zero points.

    Raises:
        UnsupportedError: The config names another layout than GPTQ's two.
    """
    named = stored.settings.get("checkpoint_format") or "gptq"
    if named not in _FORMATS:
        msg = f"the base is quantized by GPTQ in the layout {shown(named)}"
        raise UnsupportedError(msg, hint=f"The layouts {', '.join(_FORMATS)} are read.")
    return _FORMATS[named]


def _require_bits(module: str, bits: int) -> None:
    if bits not in _BITS:
        msg = f"the shapes of {module!r}.qzeros and .scales mean codes of {bits} bits"
        raise damaged(f"{msg}; GPTQ has {', '.join(map(str, _BITS))}")


def _require_shape(tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tensor.shape != wanted:
        msg = f"tensor {tensor.name!r} of the base has the shape {list(tensor.shape)}"
        raise damaged(f"{msg}; with its scales and zero points it must be {list(wanted)}")
