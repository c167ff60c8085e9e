"""The reference pages that are written from the code: recipe, errors, schemas, API, targets."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import lora_export
from lora_export.commands.recipe import Recipe
from lora_export.core import errors
from lora_export.core.targets import TARGETS
from tools.report_schemas import SCHEMAS, schema_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

__all__ = ["decisions", "exit_codes", "python_api", "recipe_keys", "schemas", "targets"]

_ROOT: Final = Path(__file__).parents[2]
_ATTRIBUTE: Final = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_CODE: Final = re.compile(r"``(.+?)``")


def recipe_keys() -> str:
    """Return a list of the recipe's keys, and one for each of its sections."""
    parts = [_keys(Recipe)]
    seen: set[type[BaseModel]] = set()
    for name, field in Recipe.model_fields.items():
        for model in _models(field.annotation):
            if model not in seen:
                seen.add(model)
                summary, _ = _documentation(model)
                parts.append(f"## `{name}`\n\n{summary}\n\n{_keys(model)}")
    return "\n".join(parts)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _models(each)


def _keys(model: type[BaseModel]) -> str:
    """Return a list of a model's keys: values, default, description."""
    lines = []
    described = _attributes(model)
    for name, field in model.model_fields.items():
        if not field.exclude:
            known = filter(None, (_values(field.annotation), _default(field)))
            lines.append(f"- **`{name}`** ({'; '.join(known)}): {described.get(name, '')}")
    return "\n".join(lines) + "\n"


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """Return the description of each key, those of the classes above it included."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            found |= _documentation(each)[1]
    return found


def _documentation(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """Return the summary of a model's docstring, and the text of each of its attributes."""
    text = _CODE.sub(r"`\1`", inspect.cleandoc(model.__doc__ or ""))
    summary, _, attributes = text.partition("Attributes:\n")
    rows = {name: " ".join(said.split()) for name, said in _ATTRIBUTE.findall(attributes)}
    return " ".join(summary.split()), rows


def _values(annotation: Any) -> str:
    """Return the values that a key takes, in words."""
    plain = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    if annotation in plain:
        return plain[annotation]
    if isinstance(annotation, type):
        return "section" if issubclass(annotation, BaseModel) else annotation.__name__
    arguments = [each for each in get_args(annotation) if each is not type(None)]
    origin = getattr(annotation, "__origin__", None)
    if origin in {list, tuple}:
        inner = next((each for each in arguments if each is not Ellipsis), str)
        return f"list of {_values(inner)}"
    if origin is dict:
        return "section"
    if all(isinstance(each, (str, int)) for each in arguments):
        return ", ".join(f"`{getattr(each, 'value', each)}`" for each in arguments)
    return " or ".join(dict.fromkeys(_values(each) for each in arguments[:1]))


def _default(field: FieldInfo) -> str:
    """Return the default of a key in words; nothing where its description has it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value in (None, [], (), PydanticUndefined) or isinstance(value, BaseModel):
        return ""
    text = json.dumps(getattr(value, "value", value)).strip('"')
    return f"default `{text}`"


def exit_codes() -> str:
    """Return a table of the error classes with their exit codes."""
    lines = ["| code | error | |", "|---|---|---|"]
    classes = [getattr(errors, name) for name in errors.__all__]
    for each in sorted(classes, key=lambda kind: (kind.exit_code, kind.__name__)):
        summary = _CODE.sub(r"`\1`", " ".join((each.__doc__ or "").split("\n\n")[0].split()))
        lines.append(f"| {each.exit_code} | `{each.__name__}` | {summary} |")
    return "\n".join(lines) + "\n"


def schemas() -> str:
    """Return, for each JSON file that is written, its schema's top-level keys."""
    parts = []
    for name, (file, _) in SCHEMAS.items():
        schema = json.loads(schema_text(name))
        lines = [
            f"## {name}\n",
            f"`{file}`: {schema['description']} [Schema](../schemas/{name}.schema.json).\n",
            "| key | |",
            "|---|---|",
        ]
        for key, row in schema.get("properties", {}).items():
            said = row.get("description") or row.get("title", "")
            lines.append(f"| `{key}` | {said.replace('|', '&#124;')} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def targets() -> str:
    """Return a table of the targets that ``--target`` takes."""
    lines = ["| target | compute capability | dtypes | opset | runtime |", "|---|---|---|---|---|"]
    for row in TARGETS.values():
        capability = ".".join(map(str, row.compute_capability or ())) or "–"
        runtime = "TensorRT" if row.tensorrt else "TensorRT for RTX" if row.rtx else "ONNX Runtime"
        dtypes = ", ".join(row.dtypes)
        lines.append(f"| `{row.name}` | {capability} | {dtypes} | {row.opset} | {runtime} |")
    return "\n".join(lines) + "\n"


_API: Final = {
    "Commands": ("merge_and_build", "load_recipe", "add", "remove", "verify", "bench",
                 "merge_checkpoint", "unmerge_checkpoint", "convert", "inspect"),
    "Running an export": ("open_export", "Session"),
    "Results": ("Outcome", "Reports", "PackedBundle", "Benchmark", "Merge", "Converted"),
}  # fmt: skip


def python_api() -> str:
    """Return the page of the Python API, for mkdocstrings to fill in."""
    parts = []
    for title, names in _API.items():
        parts.append(f"## {title}\n")
        for name in names:
            home = inspect.getmodule(getattr(lora_export, name))
            assert home is not None  # noqa: S101  (a public name has a module)
            parts.append(f"::: {home.__name__}.{name}\n    options:\n      heading_level: 3\n")
    rest = sorted(set(lora_export.__all__) - {name for row in _API.values() for name in row})
    listed = ", ".join(f"`{name}`" for name in rest if name != "__version__")
    parts.append(f"## Other names\n\nRecords, sections of a recipe and errors: {listed}.\n")
    return "\n".join(parts)


def decisions() -> str:
    """Return the list of decisions, by number."""
    lines = []
    for path in sorted((_ROOT / "docs/adr").glob("[0-9]*.md")):
        head = path.read_text("utf-8").partition("\n")[0]
        title = re.sub(r"^# (?:ADR )?[0-9]+[.:] ", "", head)
        lines.append(f"- ADR {int(path.name[:4])}: [{title}]({path.name})")
    return "\n".join(lines) + "\n"
