"""Static validation of a model repository: the schema, the files, the graphs; no server."""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import ExportDirectoryError, InputError
from lora_export.core.files import is_relative_inside
from lora_export.ondevice.external_data import external_problem
from lora_export.ondevice.file_opening import is_regular_file, real_path, reason_of
from lora_export.triton.check_ensemble import ensemble_problems
from lora_export.triton.check_index import code_problems, file_problem, index_problems
from lora_export.triton.find_models import versions_of
from lora_export.triton.graph_io import read_interface
from lora_export.triton.model_config import ADAPTER, FINGERPRINT
from lora_export.triton.model_folders import is_plain
from lora_export.triton.protobuf_schema import CONFIG_NAME, data_type_name, parse_config, schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lora_export.triton.graph_io import Interface, Tensor

__all__ = ["check_repository"]

_ITEM_BYTES: Final[dict[str, int]] = {
    "TYPE_BOOL": 1, "TYPE_UINT8": 1, "TYPE_INT8": 1, "TYPE_INT16": 2, "TYPE_FP16": 2,
    "TYPE_BF16": 2, "TYPE_INT32": 4, "TYPE_FP32": 4, "TYPE_INT64": 8, "TYPE_FP64": 8,
}  # fmt: skip
_ANY: Final = -1
_CAPABILITY: Final = re.compile(r"\d{1,2}\.\d")
_PLATFORMS: Final = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}
_GIVEN: Final = {"adapter_ids": ADAPTER}
"""Inputs of a graph that a model of the Python backend makes of another."""


def check_repository(repository: Path) -> dict[str, list[str]]:
    """Return the problems of each model of a repository; empty lists where there are none.

    Raises:
        ExportDirectoryError: There is no such folder, or no model in it.
        MissingRuntimeError: tritonclient is not installed.
    """
    schema()
    try:
        folders = sorted(each for each in repository.iterdir() if each.is_dir())
    except OSError as error:
        msg = f"{str(repository)!r} is not a model repository: {reason_of(error)}"
        raise ExportDirectoryError(msg, hint="Give the folder with the models.") from error
    if not folders:
        msg = f"{str(repository)!r} has no model"
        raise ExportDirectoryError(msg, hint="Write some with: lora-export triton EXPORT")
    configs: dict[str, Any] = {}
    problems: dict[str, list[str]] = {}
    for folder in folders:
        try:
            configs[folder.name] = parse_config(folder / CONFIG_NAME)
            problems[folder.name] = list(_model_problems(folder, configs[folder.name]))
        except InputError as error:  # noqa: PERF203  (a finding of its own for each)
            problems[folder.name] = [error.message]
        except OSError as error:
            problems[folder.name] = [f"cannot be read: {reason_of(error)}"]
    for name, config in configs.items():
        if config.HasField("ensemble_scheduling") or config.platform == "ensemble":
            problems[name] += ensemble_problems(config, configs)
    return problems


def _model_problems(folder: Path, config: Any) -> Iterator[str]:
    if config.name and config.name != folder.name:
        yield f"its name is {config.name!r}, its folder {folder.name!r}"
    kind = config.backend or _PLATFORMS.get(config.platform, config.platform)
    if kind not in _CHECKS:
        yield f"backend {kind!r} is not one that is known here: {', '.join(_CHECKS)}"
        return
    versions = versions_of(folder)
    if not versions:
        yield "it has no version folder (1, 2, …)"
    numbers = {int(each.name) for each in versions}
    for number in config.version_policy.specific.versions:
        if number not in numbers:
            yield f"version {number} of its version_policy is missing"
    if config.version_policy.HasField("latest") and not config.version_policy.latest.num_versions:
        yield "its version_policy serves the latest 0 versions"
    yield from _batch_problems(config, kind)
    yield from _dims_problems(config)
    yield from _link_problems(folder)
    yield from _cache_problems(config, kind)
    where = str(real_path(folder))
    if kind == "python" and not is_plain(where):
        yield f"Triton starts a Python model through a shell, which takes {where!r} apart"
    for version in versions:
        yield from _CHECKS[kind](version, config)
    yield from _warmup_problems(folder, config)


def _batch_problems(config: Any, kind: str) -> Iterator[str]:
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}"
    for what, tensors in (("input", config.input), ("output", config.output)):
        names = [each.name for each in tensors]
        for name in sorted({each for each in names if names.count(each) > 1}):
            yield f"{what} {name!r} is there twice"
    if config.HasField("dynamic_batching") and not config.max_batch_size:
        yield "it has dynamic_batching, and max_batch_size 0"
    for size in config.dynamic_batching.preferred_batch_size:
        if not 0 < size <= max(config.max_batch_size, 1):
            yield f"preferred batch size {size}, max_batch_size {config.max_batch_size}"
    optional = [each.name for each in config.input if each.optional]
    if optional and kind == "tensorrt":
        yield f"input {optional[0]!r} is optional, which the backend tensorrt refuses"
    if optional and kind == "onnxruntime" and config.max_batch_size:
        yield f"input {optional[0]!r} is optional: onnxruntime needs max_batch_size 0 for that"


def _dims_problems(config: Any) -> Iterator[str]:
    """Yield sizes that the server refuses: none at all, below 1, or a reshape of another count."""
    for each in (*config.input, *config.output):
        dims, shape = list(each.dims), list(each.reshape.shape)
        if not dims or any(size < 1 and size != _ANY for size in (*dims, *shape)):
            yield f"{each.name!r} has the dims {dims}: they are −1 or at least 1"
        elif each.HasField("reshape") and prod(map(abs, dims)) != prod(map(abs, shape)):
            yield f"{each.name!r} has the dims {dims}, reshaped to {shape}"


def _link_problems(folder: Path) -> Iterator[str]:
    """Yield links that lead out of the repository: to nothing, in a container that mounts it."""
    inside = (real_path(folder), real_path(folder.parent))
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not any(map(real_path(path).is_relative_to, inside)):
            where = path.relative_to(folder).as_posix()
            yield f"{where} is a link that leads out of the repository, to {str(path.readlink())!r}"


def _cache_problems(config: Any, kind: str) -> Iterator[str]:
    if config.response_cache.enable and kind != "ensemble" and FINGERPRINT in config.parameters:
        yield (
            "the response cache of a model keeps errors too, and answers the next such request "
            "with nothing: it belongs into an ensemble (--response-cache)"
        )
    if (
        kind == "python"
        and config.response_cache.enable
        and any(each.name == ADAPTER and each.optional for each in config.input)
    ):
        yield (
            f"the response cache is on and the input {ADAPTER!r} optional: an adapter named by a "
            "parameter would be answered from the cache of another"
        )


def _onnx_problems(version: Path, config: Any) -> Iterator[str]:
    file = config.default_model_filename or "model.onnx"
    if not is_relative_inside(file):
        yield f"default_model_filename {file!r} leads outside"
        return
    yield from _graph_problems(version, version / file, config, inputs=lambda name: name)


def _graph_problems(
    version: Path, path: Path, config: Any, *, inputs: Callable[[str], str]
) -> Iterator[str]:
    """Compare a graph with a configuration; `inputs` says what an input is called in that."""
    where = f"{version.name}/{path.relative_to(version).as_posix()}"
    if problem := file_problem(path):
        yield f"{where} {problem}"
        return
    interface = read_interface(path)
    for file, needed in interface.files.items():
        if problem := external_problem(path.parent, file):
            yield f"{where} reads {file!r}, which {problem}"
        elif (have := (path.parent / file).stat().st_size) < needed:
            yield f"{where} reads {needed} bytes of {file!r}, which has {have}"
    given = [each for each in interface.inputs if inputs(each.name) == each.name]
    names = {each.name for each in interface.inputs}
    own = [each for each in config.input if each.name != ADAPTER or ADAPTER in names]
    yield from _names_problems(where, {each.name for each in own}, given, interface)
    batched = config.max_batch_size > 0
    for kind, tensors, declared in (
        ("input", given, own),
        ("output", interface.outputs, config.output),
    ):
        one = {each.name: each for each in tensors}
        for each in declared:
            if kind == "output" and each.name not in one:
                yield f"output {each.name!r} is none of the graph {where}"
            if each.name in one:
                yield from _tensor_problems(where, kind, one[each.name], each, batched=batched)


def _names_problems(
    where: str, configured: set[str], given: Sequence[Tensor], interface: Interface
) -> Iterator[str]:
    wanted = {each.name for each in given}
    for name in sorted(configured - wanted - {each.name for each in interface.optional}):
        yield f"input {name!r} is none of the graph {where}"
    for name in sorted(wanted - configured):
        yield f"the graph {where} reads {name!r}, which the configuration lacks"


def _tensor_problems(
    where: str, kind: str, tensor: Tensor, declared: Any, *, batched: bool
) -> Iterator[str]:
    """Compare what a graph reads or returns with what its configuration says."""
    name, data_type = tensor.name, data_type_name(declared.data_type)
    if data_type != tensor.data_type:
        yield f"{kind} {name!r} is {data_type}, {tensor.data_type} in {where}"
    dims = list(declared.reshape.shape if declared.HasField("reshape") else declared.dims)
    if batched:
        if tensor.dims[:1] != (-1,):
            yield f"max_batch_size is not 0, and {name!r} of {where} has no batch"
        dims = [-1, *dims]
    if len(dims) != len(tensor.dims) or any(
        -1 not in {mine, its} and mine != its for mine, its in zip(dims, tensor.dims, strict=True)
    ):
        yield f"{kind} {name!r} is {dims}, {list(tensor.dims)} in {where}"


def _engine_problems(version: Path, config: Any) -> Iterator[str]:
    files = dict(config.cc_model_filenames)
    default = config.default_model_filename or "model.plan"
    if not files and not (is_relative_inside(default) and is_regular_file(version / default)):
        yield f"{version.name} has neither cc_model_filenames nor a default plan"
    for capability, file in sorted(files.items()):
        if not _CAPABILITY.fullmatch(capability):
            yield f"cc_model_filenames: {capability!r} is no compute capability"
        if not is_relative_inside(file):
            yield f"{file!r}, for compute capability {capability}, leads outside"
        elif problem := file_problem(version / file):
            yield f"{version.name}/{file}, for compute capability {capability}, {problem}"


def _python_problems(version: Path, config: Any) -> Iterator[str]:
    file = config.default_model_filename or "model.py"
    if not is_relative_inside(file):
        yield f"default_model_filename {file!r} leads outside"
        return
    yield from code_problems(version, file)

    def compare(path: Path) -> Iterator[str]:
        return _graph_problems(version, path, config, inputs=lambda name: _GIVEN.get(name, name))

    yield from index_problems(version, config, compare)


def _nothing(version: Path, config: Any) -> Iterator[str]:  # noqa: ARG001  (one of the table)
    """Return nothing: an ensemble has no file of its own."""
    yield from ()


_CHECKS: Final[dict[str, Callable[[Path, Any], Iterator[str]]]] = {
    "onnxruntime": _onnx_problems,
    "tensorrt": _engine_problems,
    "python": _python_problems,
    "ensemble": _nothing,
}
"""What is looked at in each version of a model, by backend."""


def _warmup_problems(folder: Path, config: Any) -> Iterator[str]:
    declared = {each.name for each in config.input}
    for request in config.model_warmup:
        for name in sorted(declared - set(request.inputs)):
            if not next(each.optional for each in config.input if each.name == name):
                yield f"warm-up {request.name!r} lacks the input {name!r}"
        for name, given in sorted(request.inputs.items()):
            if name not in declared:
                yield f"warm-up {request.name!r} gives {name!r}, which is not an input"
            if not given.input_data_file:
                continue
            path = folder / "warmup" / given.input_data_file
            item = _ITEM_BYTES.get(data_type_name(given.data_type))
            if not is_relative_inside(given.input_data_file):
                yield f"warm-up file {given.input_data_file!r} leads outside"
            elif problem := file_problem(path):
                yield f"warmup/{given.input_data_file} {problem}"
            elif item and path.stat().st_size != prod(given.dims) * item * request.batch_size:
                yield f"warmup/{given.input_data_file} has {path.stat().st_size} bytes"
