"""The files beside a graph that hold its tensors, checked before a library opens them.

A tensor of an ONNX graph may lie in another file, whose path the graph names. ONNX Runtime and
TensorRT open what is named: a path out of the graph's folder, a pipe or a device too. The names are
read here, from the graph's protobuf message (https://protobuf.dev/programming-guides/encoding), and
what they lead to is required to be a regular file inside the folder. The standard library alone:
host and device share this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.ondevice.device_errors import ExportDirectoryError
from lora_export.ondevice.device_files import resolve_inside
from lora_export.ondevice.file_opening import read_file, reason_of, require_file
from lora_export.ondevice.protobuf_fields import BYTES, fields

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "GRAPH_LIMIT_BYTES",
    "external_files",
    "external_problem",
    "graph_bytes",
    "read_graph",
    "require_external_data",
]

GRAPH_LIMIT_BYTES: Final = (1 << 31) - 1
"""The largest message that protobuf reads."""

_LOCATION: Final = b"location"
"""The key of the entry that names the file."""

_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {13: "entry"},
}
"""The messages inside each kind of message by their field numbers (``onnx.proto``), as far as a
tensor can be in them."""

_DEEPEST: Final = 100
"""How deep protobuf reads messages in messages."""

_KEY, _VALUE = 1, 2
_HINT: Final = "The file is damaged: copy or export it again."


def read_graph(path: Path) -> bytes:
    """Return an ``.onnx`` file; every file that it names is there, inside its folder.

    Raises:
        ExportDirectoryError: It cannot be read, is not a regular file, is too large, is not an ONNX
            graph, or names a file that `require_external_data` refuses.
    """
    data = graph_bytes(path)
    require_external_data(path, data)
    return data


def graph_bytes(path: Path) -> bytes:
    """Return an ``.onnx`` file as it is.

    Raises:
        ExportDirectoryError: It cannot be read, is not a regular file, or is too large.
    """
    try:
        return read_file(path, GRAPH_LIMIT_BYTES)
    except OSError as error:
        msg = f"the graph {str(path)!r} cannot be read: {reason_of(error)}"
        raise ExportDirectoryError(msg, hint=_HINT) from error


def require_external_data(path: Path, data: bytes) -> None:
    """Require of each file that a graph names that it is a regular file in the graph's folder.

    Args:
        path: The graph's file.
        data: What it holds.

    Raises:
        ExportDirectoryError: The graph cannot be parsed; or a file is absolute, climbs out of the
            folder, lies behind a link that leaves it, is missing, or is not a regular file.
    """
    try:
        files = sorted(external_files(data))
    except ValueError as error:
        msg = f"{str(path)!r} is not a readable ONNX model: {error}"
        raise ExportDirectoryError(msg, hint=_HINT) from error
    for file in files:
        if problem := external_problem(path.parent, file):
            msg = f"the graph {str(path)!r} reads {file!r}, which {problem}"
            raise ExportDirectoryError(msg, hint=_HINT)


def external_problem(folder: Path, file: str) -> str | None:
    """Return why a file that a graph in `folder` names is not to be opened, or None."""
    try:
        require_file(resolve_inside(folder, file))
    except ExportDirectoryError:
        return "leads outside its folder"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {reason_of(error)}"
    return None


def external_files(data: bytes) -> set[str]:
    """Return the names of the files that a graph's tensors lie in, as the graph has them.

    Raises:
        ValueError: `data` is no message of protobuf, or a name is not text.
    """
    found: set[str] = set()
    waiting = [("model", 0, len(data), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > _DEEPEST:
            msg = f"its messages are nested more than {_DEEPEST} deep"
            raise ValueError(msg)
        inner = _MESSAGES[kind]
        for number, wire, _, first, last in fields(data, start, end):
            name = inner.get(number) if wire == BYTES else None
            if name is None or data.find(_LOCATION, first, last) < 0:
                continue
            if name == "entry":
                found |= _locations(data, first, last)
            else:
                waiting.append((name, first, last, depth + 1))
    return found


def _locations(data: bytes, start: int, end: int) -> set[str]:
    """Return the values of an entry whose key is ``location``."""
    texts = [
        (each.number, data[each.start : each.end])
        for each in fields(data, start, end)
        if each.wire == BYTES
    ]
    if (_KEY, _LOCATION) not in texts:
        return set()
    return {value.decode("utf-8") for number, value in texts if number == _VALUE}
