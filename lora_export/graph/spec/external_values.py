"""Values of tensors that lie in a file beside their graph."""

from __future__ import annotations

import onnx

__all__ = ["place_outside"]

_INLINE = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def place_outside(
    tensor: onnx.TensorProto, location: str, offset_bytes: int, length_bytes: int
) -> None:
    """Point a tensor at a range of bytes of a file; mutates `tensor`.

    Its own value goes, inline or in another file; its dtype and shape stay.

    Args:
        tensor: The tensor.
        location: The file, relative to the graph's folder.
        offset_bytes: Where the range begins.
        length_bytes: Its length.

    Reference: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
    """
    for field in ("raw_data", *_INLINE):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (
        ("location", location),
        ("offset", offset_bytes),
        ("length", length_bytes),
    ):
        tensor.external_data.add(key=key, value=str(value))
