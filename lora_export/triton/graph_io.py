"""The inputs, outputs and files of a graph, in Triton's terms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from onnx import TensorProto, external_data_helper

from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.spec.onnx_file import parse_onnx, read_onnx
from lora_export.ondevice.external_data import graph_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["DATA_TYPES", "Interface", "Tensor", "read_interface", "relocated", "stack_rows"]

DATA_TYPES: Final[dict[int, str]] = {
    TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.INT8: "TYPE_INT8",
    TensorProto.INT16: "TYPE_INT16",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.FLOAT16: "TYPE_FP16",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.BFLOAT16: "TYPE_BF16",
    TensorProto.STRING: "TYPE_STRING",
}
"""Triton's name of each element type of ONNX."""

_ANY: Final = -1


@dataclass(frozen=True)
class Tensor:
    """An input or an output.

    Attributes:
        name: Its name.
        data_type: Its type, Triton's name.
        dims: Its sizes, the batch included; −1 where the size is the caller's.
        axes: What the graph calls them; "" where the size has no name.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    axes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Interface:
    """The outside of a graph.

    Attributes:
        inputs: What has to be given.
        optional: What may be given.
        outputs: What is returned.
        files: The files that its weights lie in, by their name in the graph, and how many bytes
            of each it needs.
    """

    inputs: tuple[Tensor, ...]
    optional: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    files: Mapping[str, int]

    @property
    def batched(self) -> bool:
        """Whether the first axis of everything is a batch of the caller's size."""
        return all(each.dims[:1] == (_ANY,) for each in (*self.inputs, *self.outputs))


def read_interface(path: Path) -> Interface:
    """Read the interface of a graph; its weights are not opened.

    Raises:
        ExportDirectoryError: It is missing, no ONNX file, or has a type that Triton does not know.
    """
    model = parse_onnx(graph_bytes(path), repr(str(path)))
    held = {each.name for each in model.graph.initializer}
    given = [_tensor(path, value) for value in model.graph.input]
    files: dict[str, int] = {}
    for each in model.graph.initializer:
        if external_data_helper.uses_external_data(each):
            place = {entry.key: entry.value for entry in each.external_data}
            last = _number(path, place, "offset") + _number(path, place, "length")
            file = place.get("location", "")
            files[file] = max(files.get(file, 0), last)
    return Interface(
        tuple(each for each in given if each.name not in held),
        tuple(each for each in given if each.name in held),
        tuple(_tensor(path, value) for value in model.graph.output),
        files,
    )


def stack_rows(path: Path) -> int:
    """Return how many rows the stacks of a batched graph have, the base's included; 1 without any.

    Raises:
        ExportDirectoryError: It is missing or no ONNX file.
    """
    held = read_onnx(path).graph.initializer
    rows = [each.dims[0] for each in held if each.name.endswith(".stack") and each.dims]
    return min(rows, default=1)


def relocated(path: Path, names: Mapping[str, str]) -> bytes:
    """Return a graph whose weights lie in files of other names.

    Args:
        path: The graph.
        names: The new name of each file that has one.
    """
    model = read_onnx(path)
    for each in model.graph.initializer:
        for entry in each.external_data:
            if entry.key == "location" and entry.value in names:
                entry.value = names[entry.value]
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _number(path: Path, place: Mapping[str, str], key: str) -> int:
    text = place.get(key, "0")
    if not (text.isascii() and text.isdigit()):
        msg = f"{str(path)!r} has weights with {key} {text!r}"
        raise ExportDirectoryError(msg, hint="Copy the directory again, or write it again.")
    return int(text)


def _tensor(path: Path, value: Any) -> Tensor:
    kind = value.type.tensor_type
    if kind.elem_type not in DATA_TYPES:
        msg = f"{str(path)!r}: {value.name!r} has element type {kind.elem_type}, unknown to Triton"
        raise ExportDirectoryError(msg)
    dims = tuple(axis.dim_value if axis.HasField("dim_value") else _ANY for axis in kind.shape.dim)
    axes = tuple(axis.dim_param for axis in kind.shape.dim)
    return Tensor(value.name, DATA_TYPES[kind.elem_type], dims, axes)
