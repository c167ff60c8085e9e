"""ONNX models from bytes and files; their weights in other files are not read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import onnx

from lora_export.core.errors import ExportDirectoryError
from lora_export.ondevice.external_data import read_graph

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["parse_any_onnx", "parse_onnx", "read_onnx"]

_HINT: Final = "The file is damaged: copy or export it again."


def parse_onnx(onnx_bytes: bytes, name: str = "the graph") -> onnx.ModelProto:
    """Return the model that `onnx_bytes` holds, a graph of the tool's own.

    Args:
        onnx_bytes: The contents of an ``.onnx`` file.
        name: What messages call it.

    Raises:
        ExportDirectoryError: They cannot be parsed, a text in them is not UTF-8, or the graph has
            no outputs (as no bytes at all have, which protobuf parses).
    """
    model = parse_any_onnx(onnx_bytes, name)
    if not model.graph.output:
        raise _unreadable(name, "its graph has no outputs")
    return model


def parse_any_onnx(onnx_bytes: bytes, name: str = "the graph") -> onnx.ModelProto:
    """Return the model that `onnx_bytes` holds, as `parse_onnx`, with or without outputs."""
    try:
        model = onnx.load_model_from_string(onnx_bytes)
    except Exception as error:
        raise _unreadable(name, str(error)) from error
    if not _is_text(model):
        raise _unreadable(name, "a name in it is not UTF-8")
    return model


def _unreadable(name: str, problem: str) -> ExportDirectoryError:
    return ExportDirectoryError(f"{name} is not a readable ONNX model: {problem}", hint=_HINT)


def read_onnx(path: Path) -> onnx.ModelProto:
    """Return the model in a file, without its external data.

    Raises:
        ExportDirectoryError: The file is missing, too large, or no ONNX model; or it names a file
            for a tensor that is missing or leads outside its folder.
    """
    return parse_onnx(read_graph(path), repr(str(path)))


def _is_text(model: onnx.ModelProto) -> bool:
    """Whether every text in a model is UTF-8; protobuf parses it as it is."""
    waiting: list[Any] = [model]
    try:
        while waiting:
            for field, value in waiting.pop().ListFields():
                if field.message_type is not None:
                    waiting.extend((value,) if hasattr(value, "ListFields") else value)
                elif field.type == field.TYPE_STRING:
                    texts = (value,) if isinstance(value, str | bytes) else value
                    if not all(isinstance(text, str) for text in texts):
                        return False
    except UnicodeDecodeError:
        return False
    return True
