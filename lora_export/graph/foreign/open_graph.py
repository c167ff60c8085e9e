"""A graph that another exporter wrote, opened: structure parsed, tensors read when needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Final

import onnx
from onnx import numpy_helper

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import ExportDirectoryError, InputError, UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.core.tensors import FileHandle, FileTensor, MemoryTensor, is_shape, nbytes
from lora_export.graph.foreign.proto_skeleton import (
    HERE,
    INLINE_BYTES,
    damaged_graph,
    read_skeleton,
)
from lora_export.graph.foreign.rewire import all_graphs, lift_tensors, split_identities
from lora_export.ondevice.file_opening import reason_of, require_file

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.core.dtypes import DType
    from lora_export.core.tensors import Tensor

__all__ = ["ForeignGraph", "open_graph"]

_BY_CODE: Final = {row.onnx: row for row in DTYPES.values()}
_OLDEST_IR: Final = 4
"""From this version on, an initializer need not be an input too."""

_RESTORED_LIMIT_BYTES: Final = 1 << 28
"""The limit on tensor data read into the model: small tensors, and attributes of nodes."""

_EXTERNAL: Final = onnx.TensorProto.EXTERNAL


@dataclass(frozen=True)
class ForeignGraph:
    """An ONNX model of somebody else.

    Attributes:
        path: The file.
        model: Its structure. Whatever may be a weight is an initializer of the main graph; what is
            small and cannot be one holds its bytes, all else points at `path` or beside it.
        tensors: The floating initializers but scalars, and all that are large, unread. One whose
            dtype no checkpoint has is uint8 ``[bytes]``.
    """

    path: Path
    model: onnx.ModelProto = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return max((each.version for each in self.model.opset_import
                    if each.domain in {"", "ai.onnx"}), default=0)  # fmt: skip


def open_graph(path: Path, sizes: Container[int]) -> ForeignGraph:
    """Open the ONNX model in `path`, reading its structure only.

    Args:
        path: The ``.onnx`` file; its external data lie in its folder or below.
        sizes: How many elements the checkpoint's tensors have: a floating constant of another size
            is not a weight.

    Raises:
        InputError: The file is damaged, or its data are missing, too short or outside its folder.
        UnsupportedError: An old IR version, or weights inside a function of the model.
    """
    model = read_skeleton(path)
    if model.ir_version < _OLDEST_IR:
        msg = f"{str(path)!r} has IR version {model.ir_version}; {_OLDEST_IR} and up are read"
        raise UnsupportedError(msg, hint="Export it again with a newer exporter.")

    def may_be_weight(tensor: onnx.TensorProto) -> bool:
        dtype = _BY_CODE.get(tensor.data_type)
        if dtype is None or not dtype.floating or len(tensor.dims) == 0:
            return False
        return prod(tensor.dims) in sizes

    _refuse_functions(path, model, may_be_weight)
    lift_tensors(model, lambda each: may_be_weight(each) or each.data_location == _EXTERNAL)
    split_identities(model.graph)
    files = _Files(path)
    for tensor in _inner_tensors(model):
        if tensor.data_location == _EXTERNAL:
            files.restore(tensor)
    tensors: dict[str, Tensor] = {}
    for each in model.graph.initializer:
        if each.name in tensors:
            raise damaged_graph(path, f"the initializer {each.name!r} stands twice")
        if each.data_location == _EXTERNAL and nbytes(files.tensor(each)) < INLINE_BYTES:
            files.restore(each)
        dtype = _BY_CODE.get(each.data_type)
        named_weight = dtype is not None and dtype.floating and len(each.dims) > 0
        if named_weight or each.data_location == _EXTERNAL:
            tensors[each.name] = files.tensor(each)
    return ForeignGraph(path, model, tensors)


def _refuse_functions(
    path: Path, model: onnx.ModelProto, may_be_weight: Callable[[onnx.TensorProto], bool]
) -> None:
    """Raise where a function of the model holds what may be a weight: nothing reaches it there."""
    for function in model.functions:
        for node in function.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR and may_be_weight(attribute.t):
                    msg = f"the function {function.name!r} in {str(path)!r} may hold a weight"
                    raise UnsupportedError(
                        msg, hint="Inline its functions first: onnx.inliner.inline_local_functions."
                    )


def _inner_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that is no initializer of the main graph."""
    for graph in all_graphs(model.graph):
        if graph is not model.graph:
            yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
    for function in model.functions:
        for node in function.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


class _Files:
    """The files that a model's data lie in, each opened once.

    Args:
        path: The ``.onnx`` file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handles: dict[str, tuple[FileHandle, int]] = {}
        self._restored_bytes = 0

    def tensor(self, proto: onnx.TensorProto) -> Tensor:
        """Return a tensor of the model, unread where its bytes are in a file."""
        dtype, shape = _BY_CODE.get(proto.data_type), tuple(proto.dims)
        if not is_shape(shape):
            raise damaged_graph(self._path, f"tensor {proto.name!r} has the shape {list(shape)}")
        if proto.data_location != _EXTERNAL:
            return MemoryTensor(proto.name, _known(proto, dtype), self._in_memory(proto))
        handle, offset, length = self._place(proto)
        if dtype is None:
            return FileTensor(proto.name, DTYPES["uint8"], (length,), handle, offset)
        needed = prod(shape) * dtype.itemsize_bytes
        if needed != length:
            raise damaged_graph(
                self._path,
                f"tensor {proto.name!r} of shape {list(shape)} and dtype {dtype.name} "
                f"does not take the {length} bytes that it has",
            )
        return FileTensor(proto.name, dtype, shape, handle, offset)

    def restore(self, proto: onnx.TensorProto) -> None:
        """Put the bytes of a tensor back into the model; mutates `proto`."""
        handle, offset, length = self._place(proto)
        self._restored_bytes += length
        if self._restored_bytes > _RESTORED_LIMIT_BYTES:
            raise damaged_graph(
                self._path, f"its nodes hold more than {_RESTORED_LIMIT_BYTES} bytes"
            )
        buffer = bytearray(length)
        handle.read_into(memoryview(buffer), offset)
        del proto.external_data[:]
        proto.ClearField("data_location")
        proto.raw_data = bytes(buffer)

    def _in_memory(self, proto: onnx.TensorProto) -> npt.NDArray[Any]:
        try:
            return numpy_helper.to_array(proto)
        except Exception as error:
            raise damaged_graph(self._path, f"tensor {proto.name!r}: {error}") from error

    def _place(self, proto: onnx.TensorProto) -> tuple[FileHandle, int, int]:
        """Return where the bytes of `proto` lie: the file, the offset and the length."""
        entries = {each.key: each.value for each in proto.external_data}
        location = entries.get("location", "")
        handle, size = self._opened(proto.name, location)
        dtype = _BY_CODE.get(proto.data_type)
        try:
            offset = int(entries.get("offset", 0))
            default = prod(proto.dims) * dtype.itemsize_bytes if dtype else size - offset
            length = int(entries.get("length", default))
        except ValueError as error:
            raise damaged_graph(self._path, f"tensor {proto.name!r}: {error}") from error
        if offset < 0 or length < 0 or offset + length > size:
            where = repr(location) if location != HERE else "the file"
            raise damaged_graph(
                self._path,
                f"tensor {proto.name!r} is said to lie at bytes {offset} to {offset + length} "
                f"of {where}, which has {size}",
            )
        return handle, offset, length

    def _opened(self, name: str, location: str) -> tuple[FileHandle, int]:
        if location not in self._handles:
            file = self._path if location == HERE else self._resolved(name, location)
            try:
                self._handles[location] = FileHandle(file), require_file(file).st_size
            except FileNotFoundError as error:
                msg = f"the data of {name!r} in {str(self._path)!r} are missing: {str(file)!r}"
                raise InputError(msg, hint="Copy the graph's data files beside it.") from error
            except OSError as error:
                msg = f"the data of {name!r}, {str(file)!r}, cannot be read: {reason_of(error)}"
                raise InputError(msg, hint="Copy the graph's data files beside it.") from error
        return self._handles[location]

    def _resolved(self, name: str, location: str) -> Path:
        try:
            found = resolve_inside(self._path.parent, location) if location else None
        except ExportDirectoryError as error:
            msg = (
                f"the data of {name!r} in {str(self._path)!r} are said to lie at {location!r}, "
                "outside the graph's folder"
            )
            raise InputError(msg, hint="The graph is damaged or hostile.") from error
        if found is None:
            raise damaged_graph(self._path, f"the external tensor {name!r} has no location")
        return found


def _known(proto: onnx.TensorProto, dtype: DType | None) -> DType:
    assert dtype is not None, proto.name  # noqa: S101  (small tensors are asked for by their dtype)
    return dtype
