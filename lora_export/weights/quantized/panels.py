"""Parts of stored tensors, read by position, and codes unpacked from the words that hold them.

4 bits in bytes, high half first    b0 = c0 << 4 | c1                      bitsandbytes
4 bits in bytes, low half first     b0 = c0 | c1 << 4                      MXFP4
a stream of b bits in 32-bit words  code k is bits b·k … b·(k + 1) − 1     GPTQ, compressed-tensors
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import DTYPES, to_float32
from lora_export.core.errors import CheckpointError
from lora_export.core.tensors import bytes_of, nbytes

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.core.dtypes import DType, Float32Array
    from lora_export.core.tensors import Tensor
    from lora_export.weights.quantized.weight import Span

    Array = npt.NDArray[Any]

__all__ = [
    "BytesTensor",
    "damaged",
    "high_half_first",
    "low_half_first",
    "read_elements",
    "read_panel",
    "read_scales",
    "unpack_stream",
    "word_span",
]

_WORD_BITS: Final = 32
_GAP_BYTES: Final = 4096


@dataclass(frozen=True)
class BytesTensor:
    """The bytes of a tensor of another dtype."""

    whole: Tensor

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.whole.name

    @property
    def dtype(self) -> DType:
        """``uint8``."""
        return DTYPES["uint8"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of bytes."""
        return (nbytes(self.whole),)

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the tensor's bytes from `offset_bytes` on."""
        self.whole.read_into(buffer, offset_bytes)


def damaged(msg: str) -> CheckpointError:
    """Return the error of stored tensors that do not belong together."""
    return CheckpointError(msg, hint="The checkpoint is damaged or incomplete: copy it again.")


def read_elements(tensor: Tensor, first: int, last: int) -> Array:
    """Return elements `first` to `last` of a tensor in C order, ``[last - first]``."""
    values = np.empty(last - first, tensor.dtype.numpy)
    tensor.read_into(bytes_of(values), first * tensor.dtype.itemsize_bytes)
    return values


def read_panel(tensor: Tensor, rows: Span, columns: Span) -> Array:
    """Return a part of a matrix, ``[rows, columns]``.

    Rows that lie close to each other are read with what is between them, the others one by one.
    """
    width, (first, last) = tensor.shape[1], columns
    between = (width - (last - first)) * tensor.dtype.itemsize_bytes
    if between <= _GAP_BYTES:
        whole = read_elements(tensor, rows[0] * width, rows[1] * width)
        return whole.reshape(-1, width)[:, first:last]
    values = np.empty((rows[1] - rows[0], last - first), tensor.dtype.numpy)
    for at, row in enumerate(range(*rows)):
        start = (row * width + first) * tensor.dtype.itemsize_bytes
        tensor.read_into(bytes_of(values[at]), start)
    return values


def read_scales(tensor: Tensor, rows: Span, columns: Span) -> Float32Array:
    """Return a part of a matrix of scales in float32.

    Raises:
        CheckpointError: One of them is no finite number.
    """
    return finite(tensor, to_float32(read_panel(tensor, rows, columns)))


def finite(tensor: Tensor, values: Float32Array) -> Float32Array:
    """Return `values`, read of `tensor`.

    Raises:
        CheckpointError: One of them is no finite number.
    """
    if not bool(np.isfinite(values).all()):
        found = values[~np.isfinite(values)].flat[0]
        msg = f"tensor {tensor.name!r} of the base holds {found}; scales are finite numbers"
        raise damaged(msg)
    return values


def high_half_first(packed: Array) -> Array:
    """Return the codes of bytes that hold two each, ``[..., n]`` → ``[..., 2n]``."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    codes[..., 0::2] = packed >> 4
    codes[..., 1::2] = packed & 15
    return codes


def low_half_first(packed: Array) -> Array:
    """Return the codes of bytes that hold two each, ``[..., n]`` → ``[..., 2n]``."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    codes[..., 0::2] = packed & 15
    codes[..., 1::2] = packed >> 4
    return codes


def word_span(codes: Span, bits: int) -> tuple[Span, int]:
    """Return the words of a stream that hold codes, and the first code in these words.

    >>> word_span((5, 20), 4), word_span((40, 41), 3)
    (((0, 3), 0), ((3, 6), 32))
    """
    per_period = _WORD_BITS // bits if _WORD_BITS % bits == 0 else _WORD_BITS
    words = per_period * bits // _WORD_BITS
    first, last = codes[0] // per_period, -(-codes[1] // per_period)
    return (first * words, last * words), first * per_period


def unpack_stream(words: Array, bits: int) -> Array:
    """Return the codes of a little-endian stream along the first axis.

    Args:
        words: ``[W, …]``, 32 bits each; whole periods of the stream.
        bits: The bits of a code, 8 at most.

    Returns:
        ``[32 W / bits, …]``, uint8.
    """
    unsigned = words.view(np.uint32) if words.flags.c_contiguous else words.astype(np.uint32)
    count = unsigned.shape[0] * _WORD_BITS // bits
    period = _WORD_BITS // bits if _WORD_BITS % bits == 0 else _WORD_BITS
    per_word = period * bits // _WORD_BITS
    codes = np.empty((count, *unsigned.shape[1:]), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for at in range(period):
        word, shift = divmod(at * bits, _WORD_BITS)
        value = unsigned[word::per_word] >> np.uint32(shift)
        if shift + bits > _WORD_BITS:
            value = value | unsigned[word + 1 :: per_word] << np.uint32(_WORD_BITS - shift)
        codes[at::period] = value & mask
    return codes
