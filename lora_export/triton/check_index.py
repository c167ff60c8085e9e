"""Checks that a model of the Python backend has its code, and what its index names."""

from __future__ import annotations

import ast
import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.adapter_names import is_adapter_name
from lora_export.core.errors import ExportDirectoryError, LoraExportError
from lora_export.core.files import sha256_of_file
from lora_export.core.json_file import read_table
from lora_export.core.modes import ServingMode
from lora_export.core.safetensors_file import read_header
from lora_export.exports.pack_reading import require_fit
from lora_export.graph.adapters.swappable_graph import optional_inputs
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.file_opening import read_file, reason_of, require_file
from lora_export.triton.graph_io import DATA_TYPES, read_interface, stack_rows
from lora_export.triton.model_config import ADAPTER, FINGERPRINT, TEXT
from lora_export.triton.protobuf_schema import data_type_name
from lora_export.triton.python_models import INDEX
from lora_export.triton.serving.index import BadIndexError, read_index
from lora_export.triton.serving_modes import SERVING
from lora_export.triton.token_inputs import ADAPTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lora_export.triton.serving.index import Index

__all__ = ["code_problems", "file_problem", "index_problems"]

_ADAPTER_IDS: Final = "adapter_ids"
_HASHED: Final = re.compile(r".+-([0-9a-f]{12})\.[a-z]+")
_A: Final = ".lora_A.weight"
_CODE_LIMIT_BYTES: Final = 1 << 20
_TOKENIZER_LIMIT_BYTES: Final = 1 << 28
_TOKENIZER_NUMBERS: Final = {"max_length": 1, "multiple": 1, "pad_id": 0, "pad_type_id": 0}
"""Parameters of the tokenizer step, and the least that each may be."""


def code_problems(version: Path, file: str) -> Iterator[str]:
    """Yield what is wrong with a model's code: a file that it imports from beside it is missing.

    Args:
        version: The folder of the version.
        file: The file that the server runs.
    """
    waiting, seen = [file], {file}
    while waiting:
        name = waiting.pop()
        path = version / name
        if problem := file_problem(path):
            yield f"{version.name}/{name} {problem}"
            continue
        try:
            tree = ast.parse(read_file(path, _CODE_LIMIT_BYTES))
        except OSError as error:
            yield f"{version.name}/{name} cannot be read: {reason_of(error)}"
            continue
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            yield f"{version.name}/{name} is not Python: {error}"
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                beside = f"{node.module.partition('.')[0]}.py"
                if beside not in seen:
                    seen.add(beside)
                    waiting.append(beside)


def file_problem(path: Path) -> str | None:
    """Return why a file cannot be read, for a message that begins with its name; None if it can."""
    try:
        require_file(path)
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError) as error:
        return f"cannot be read: {reason_of(error) if isinstance(error, OSError) else error}"
    return None


def index_problems(
    version: Path, config: Any, compare: Callable[[Path], Iterator[str]]
) -> Iterator[str]:
    """Yield what is wrong with what a model of ours serves; nothing for somebody else's model.

    Args:
        version: The folder of the version.
        config: The model's configuration.
        compare: Compares a graph, by its path, with the configuration.
    """
    if FINGERPRINT not in config.parameters:
        return
    if any(each.name == TEXT for each in config.input) and not (version / INDEX).exists():
        yield from _tokenizer_problems(version, config)
        return
    folder = (version / INDEX).parent
    try:
        index = read_index(folder)
    except FileNotFoundError:
        yield f"{version.name}/{INDEX} is missing"
        return
    except (BadIndexError, OSError) as error:
        yield f"{version.name}: {error}"
        return
    yield from _config_problems(config, index)
    yield from _files_problems(version, folder, index, compare)


def _files_problems(
    version: Path, folder: Path, index: Index, compare: Callable[[Path], Iterator[str]]
) -> Iterator[str]:
    mode = SERVING[ServingMode(index.way)]
    own = {name: each.file for name, each in index.adapters.items()}
    packs = own if mode.packs else {}
    graphs = [index.graph, *(own.values() if mode.own_graphs else ())]
    weights = [index.weights] if mode.merges else []
    bad = set()
    for each in dict.fromkeys([*graphs, *packs.values(), *weights]):
        if problem := _file_problem(folder / each):
            bad.add(each)
            yield f"{version.name}/{INDEX} names {each!r}, which {problem}"
    for each in dict.fromkeys(graphs):
        if each not in bad:
            yield from compare(folder / each)
            yield from _graph_problems(folder / each, index, each)
    if index.graph not in bad:
        for name, file in packs.items():
            if file not in bad:
                yield from _pack_problems(folder, index, name)


def _config_problems(config: Any, index: Index) -> Iterator[str]:
    yield from _adapter_problems(config)
    declared = {each.name for each in config.output}
    for name in index.outputs:
        if name not in declared:
            yield f"the configuration lacks the output {name!r}"
    fingerprint = config.parameters[FINGERPRINT].string_value
    if fingerprint != index.fingerprint:
        yield f"its parameter {FINGERPRINT!r} is {fingerprint[:12]!r}…, that of {INDEX} another"
    for key in ("cache_bytes", "threads"):
        text = config.parameters[key].string_value if key in config.parameters else ""
        if not (text.isascii() and text.isdigit()):
            yield f"it has no parameter {key!r} that is a number"
        elif key == "cache_bytes":
            for name, each in sorted(index.adapters.items()):
                if each.nbytes > int(text):
                    yield f"adapter {name!r} takes {each.nbytes} bytes, cache_bytes is {text}"


def _adapter_problems(config: Any) -> Iterator[str]:
    """Yield what is wrong with the input that names an adapter for each row."""
    adapter = next((each for each in config.input if each.name == ADAPTER), None)
    if adapter is None or data_type_name(adapter.data_type) != "TYPE_STRING":
        yield f"it has no input {ADAPTER!r} of TYPE_STRING"
    elif list(adapter.dims) != [1]:
        yield f"{ADAPTER!r} has the dims {list(adapter.dims)}, not one name for each row"


def _file_problem(path: Path) -> str:
    """Return the problem of a file whose name holds a part of its SHA-256; "" if there is none."""
    if problem := file_problem(path):
        return problem
    hashed = _HASHED.fullmatch(path.name)
    if hashed and not sha256_of_file(path).startswith(hashed[1]):
        return "has another SHA-256 than its name says"
    return ""


def _graph_problems(path: Path, index: Index, file: str) -> Iterator[str]:
    """Yield in what the index differs from a graph: what it reads, returns, and its rows."""
    interface = read_interface(path)
    reads = [each.name for each in interface.inputs if each.name != _ADAPTER_IDS]
    if sorted(reads) != sorted(index.inputs):
        yield f"{INDEX} has the inputs {list(index.inputs)}, {file} reads {reads}"
    returns = [each.name for each in interface.outputs]
    if returns != list(index.outputs):
        yield f"{INDEX} has the outputs {list(index.outputs)}, {file} returns {returns}"
    if not SERVING[ServingMode(index.way)].rows:
        return
    rows = stack_rows(path)
    for name, each in sorted(index.adapters.items()):
        if not 1 <= each.row < rows:
            yield f"the row of {name!r} is {each.row}, {file} has rows up to {rows - 1}"


def _pack_problems(folder: Path, index: Index, name: str) -> Iterator[str]:
    """Yield why a pack cannot be used: damaged, of another base, or not of this graph."""
    file = index.adapters[name].file
    try:
        tensors, metadata = read_header(folder / file)
        if metadata.get(FINGERPRINT) != index.fingerprint:
            yield f"{file} is for another base"
        if SERVING[ServingMode(index.way)].merges:
            held, _ = read_header(folder / index.weights)
            for each in tensors:
                matrix = index.matrices.get(each) if each.endswith(_A) else None
                if each.endswith(_A) and (matrix is None or matrix.initializer not in held):
                    yield f"{INDEX} does not say which weight {each!r} of {file} belongs to"
            return
        graph = folder / index.graph
        shapes = {each: tensor.shape for each, tensor in tensors.items()}
        require_fit(name, shapes, optional_inputs(read_graph(graph)))
        types = {each.name: each.data_type for each in read_interface(graph).optional}
        for each, tensor in tensors.items():
            if DATA_TYPES.get(tensor.dtype.onnx) != types[each]:
                yield f"{each!r} of {file} is {tensor.dtype.name}, not {types[each]}"
    except LoraExportError as error:
        yield f"{file}: {error.message}"


def _tokenizer_problems(version: Path, config: Any) -> Iterator[str]:
    texts = {key: row.string_value for key, row in config.parameters.items()}
    yield from _text_problems(version, "tokenizer.json", texts, "")
    if ADAPTERS not in texts:
        return
    try:
        lines = json.loads(texts[ADAPTERS])
    except (ValueError, RecursionError):
        lines = None
    if not isinstance(lines, dict) or not all(isinstance(e, dict) for e in lines.values()):
        yield f"its parameter {ADAPTERS!r} is not a table of adapters"
        return
    for adapter, line in lines.items():
        if line.get("file") != f"tokenizer-{adapter}.json" or not is_adapter_name(adapter):
            yield f"its parameter {ADAPTERS!r} names no file of {adapter!r}"
            continue
        own = {"multiple": texts.get("multiple", ""), **line}
        yield from _text_problems(version, line["file"], own, f" for {adapter!r}")


def _text_problems(
    version: Path, file: str, parameters: Mapping[str, Any], whose: str
) -> Iterator[str]:
    path = version / file
    if problem := file_problem(path):
        yield f"{PurePosixPath(version.name, file)} {problem}"
    else:
        try:
            again = "Write the repository again."
            limit = _TOKENIZER_LIMIT_BYTES
            read_table(path, limit, ExportDirectoryError, absent=again, damaged=again)
        except LoraExportError as error:
            yield error.message
    for key, least in _TOKENIZER_NUMBERS.items():
        text = str(parameters.get(key, ""))
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            yield f"it has no parameter {key!r}{whose} that is a number of at least {least}"
