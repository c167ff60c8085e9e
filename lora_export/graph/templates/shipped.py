"""The templates in the package, and the graph that one makes for a config.

``data/index.json`` has a row per template; its file is a zip with ``template.json`` and the graphs.
A file that is missing, or not the one that the index names, is no template: the graph is traced.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.graph.optimize.onnx_ir_private import put_off_sympy
from lora_export.graph.spec.signature import Choices
from lora_export.graph.spec.template import TemplateOrigin
from lora_export.graph.templates.derived import derive
from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.formulas import NotExactError
from lora_export.graph.templates.matching import Matched, NoTemplateError, match
from lora_export.graph.templates.opened import Opened
from lora_export.ondevice.device_files import is_relative_inside
from lora_export.ondevice.file_opening import TABLE_LIMIT_BYTES, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from lora_export.graph.spec.tasks import Task
    from lora_export.graph.spec.template import GraphTemplate
    from lora_export.weights.sentence_head import SentenceHead

__all__ = [
    "DATA",
    "FREQUENCIES",
    "INDEX",
    "from_template",
    "instance_of",
    "open_template",
    "read_index",
    "served",
]

DATA: Final = Path(__file__).parent / "data"
INDEX: Final = "index.json"
FREQUENCIES: Final = "frequencies.zip"
_LIMIT_BYTES: Final = 1 << 24
_LEAST_LAYERS: Final = 2
_MOST_LAYERS: Final = 1024
_DEFAULTS: Final = Choices()
_DTYPES: Final = ("float16", "float32")
_ROW: Final = {"file": str, "sha256": str, "model_type": str, "task": str, "opset": int,
               "choices": dict}  # fmt: skip
"""The types of what is read in a row of the index."""


def from_template(
    settings: Mapping[str, Any],
    task: Task,
    dtype: str,
    opset: int,
    choices: Choices,
    *,
    sentence: SentenceHead | None,
    untied: bool,
) -> GraphTemplate:
    """Return the graph of `settings` from a template that ships with the package.

    Args:
        settings: The settings of a config that a graph can depend on.
        task: The task's row.
        dtype: The parameters' dtype.
        opset: The ONNX opset.
        choices: The interface of a decoder; templates have the default one.
        sentence: What pools the states of the tokens.
        untied: Whether tied parameters are parameters of their own; templates have none such.

    Raises:
        NoTemplateError: No template is for this; the text names the setting that has none.
    """
    family = FAMILIES.get(str(settings.get("model_type")))
    if family is None:
        msg = f"model_type {str(settings.get('model_type'))[:60]!r}"
        raise NoTemplateError(msg)
    if untied or choices != _DEFAULTS:
        changed = {
            name for name, value in asdict(choices).items() if value != getattr(_DEFAULTS, name)
        }
        raise NoTemplateError(", ".join(sorted(changed | ({"untied"} if untied else set()))))
    matched = match(family, settings)
    wanted = {
        "model_type": family.model_type,
        "task": task.name,
        "sentence": str(sentence) if sentence else None,
    }
    return instance_of(_row(wanted, dtype, opset, matched), matched, dtype=dtype, opset=opset)


def instance_of(
    row: Mapping[str, Any], matched: Matched, *, dtype: str | None = None, opset: int | None = None
) -> GraphTemplate:
    """Return the graph that the template of a row of the index makes for a config.

    Args:
        row: The row.
        matched: The config.
        dtype: The parameters' dtype, where it is not the template's own.
        opset: The opset, in the same way.

    Raises:
        NoTemplateError: It is damaged, or not for these sizes.
    """
    try:
        opened = derive(
            open_template(row), dtype=dtype or row["dtype"], opset=opset or row["opset"]
        )
        _check_ranges(opened.table, matched)
        frequencies = _frequencies(matched)
        put_off_sympy()
        from lora_export.graph.templates.instantiate import instantiate

        template = instantiate(opened.table, opened.graphs, matched.sizes, frequencies)
    except NotExactError as error:
        raise NoTemplateError(str(error)) from error
    origin = TemplateOrigin(row["file"], opened.sha256, str(opened.table["transformers"]))
    return replace(template, origin=origin)


@functools.cache
def read_index() -> dict[str, Any]:
    """Return the list of templates.

    Raises:
        NoTemplateError: It is missing or damaged.
    """
    try:
        index: dict[str, Any] = json.loads(read_file(DATA / INDEX, TABLE_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"the list of templates cannot be read: {error}"
        raise NoTemplateError(msg) from error
    if not _is_index(index):
        msg = "the list of templates is damaged"
        raise NoTemplateError(msg)
    return index


def _is_index(index: Any) -> bool:
    """Whether a value has the types of an index."""
    if not isinstance(index, dict) or not isinstance(index.get("frequencies"), str):
        return False
    rows = index.get("templates")
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and all(isinstance(row.get(key), kind) for key, kind in _ROW.items())
        and row.get("dtype") in _DTYPES
        and is_relative_inside(row["file"])
        and _are_derived(row.get("derived", []))
        for row in rows
    )


def _are_derived(pairs: Any) -> bool:
    return isinstance(pairs, list) and all(
        isinstance(each, list) and [type(part) for part in each] == [str, int] for each in pairs
    )


def _row(wanted: Mapping[str, Any], dtype: str, opset: int, matched: Matched) -> dict[str, Any]:
    rows: list[dict[str, Any]] = read_index()["templates"]
    for key, value in wanted.items():
        rows = [row for row in rows if row.get(key) == value]
        if not rows:
            msg = f"{key} {value!r}"
            raise NoTemplateError(msg)
    for key, value, places in (("dtype", dtype, 1), ("opset", opset, 2)):
        asked = [dtype, opset][:places]
        rows = [row for row in rows if asked in (each[:places] for each in served(row))]
        if not rows:
            msg = f"{key} {value!r}"
            raise NoTemplateError(msg)
    for row in rows:
        if all(matched.choices.get(key) == value for key, value in row["choices"].items()):
            return row
    msg = ", ".join(f"{key} {value!r}" for key, value in sorted(matched.choices.items()))
    raise NoTemplateError(msg)


def served(row: Mapping[str, Any]) -> list[list[Any]]:
    """Return the dtypes and opsets that a template is for: its own, and what it is made into.

    >>> served({"dtype": "float16", "opset": 20, "derived": [["bfloat16", 21]]})
    [['float16', 20], ['bfloat16', 21]]
    """
    return [[row["dtype"], row["opset"]], *row.get("derived", ())]


def open_template(row: Mapping[str, Any]) -> Opened:
    """Return the template of a row of the index.

    Raises:
        NoTemplateError: Its file is missing or damaged.
    """
    members = _members(row["file"], row["sha256"])
    graphs = {
        name.removesuffix(".onnx"): data for name, data in members.items() if name.endswith(".onnx")
    }
    try:
        table = json.loads(members["template.json"])
    except (KeyError, ValueError) as error:
        msg = f"the template {row['file']} is damaged: {error}"
        raise NoTemplateError(msg) from error
    return Opened(table, graphs, row["sha256"])


def _members(file: str, sha256: str) -> dict[str, bytes]:
    try:
        data = read_file(DATA / file, _LIMIT_BYTES)
    except OSError as error:
        msg = f"the template {file} cannot be read: {error}"
        raise NoTemplateError(msg) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        msg = f"the template {file} is damaged"
        raise NoTemplateError(msg)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        msg = f"the template {file} is damaged: {error}"
        raise NoTemplateError(msg) from error


def _check_ranges(table: Mapping[str, Any], matched: Matched) -> None:
    for name, (least, most) in table["ranges"].items():
        if not least <= matched.sizes[name] <= most:
            msg = f"{name} {matched.sizes[name]}: the template is for {least} to {most}"
            raise NoTemplateError(msg)
    depth = matched.sizes["layers"]
    if not _LEAST_LAYERS <= depth <= _MOST_LAYERS:
        msg = f"layers {depth}"
        raise NoTemplateError(msg)


def _frequencies(matched: Matched) -> npt.NDArray[Any] | None:
    if not matched.rope:
        return None
    name = f"{matched.rope}:{matched.sizes['head_dim']}"
    data = _members(FREQUENCIES, read_index()["frequencies"]).get(name)
    if data is None:
        msg = f"rotary frequencies {name}"
        raise NoTemplateError(msg)
    return np.frombuffer(data, "<f4")
