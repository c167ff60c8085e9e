"""Valid values of pydantic models, made from their fields."""

from __future__ import annotations

import dataclasses
import enum
import re
import types
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo

__all__ = ["example_of"]

_TEXTS: Final = ("a", "0" * 64, "8.7", "1.0", "base")


def example_of(model: type[Any], around: tuple[type[Any], ...] = ()) -> dict[str, Any]:
    """Return the fields of a valid instance, with an entry in every list and table.

    Args:
        model: A pydantic model or a dataclass.
        around: The models that it is a part of; lists of one of these are empty.
    """
    if dataclasses.is_dataclass(model):
        hints = get_type_hints(model)
        return {
            each.name: _example(hints[each.name], [], around) for each in dataclasses.fields(model)
        }
    fields: Mapping[str, FieldInfo] = model.model_fields
    inner = (*around, model)
    return {name: _example(each.annotation, each.metadata, inner) for name, each in fields.items()}


def _example(kind: Any, metadata: list[Any], around: tuple[type[Any], ...]) -> Any:
    inner = get_args(kind)
    if hasattr(kind, "__metadata__"):
        return _example(kind.__origin__, [*metadata, *kind.__metadata__], around)
    if not inner:
        return _example_of_class(kind, metadata, around)
    origin = get_origin(kind)
    if origin is Literal:
        return inner[0]
    if origin in {list, tuple}:
        kinds = [each for each in inner if each is not ...]
        return [_example(each, [], around) for each in kinds if each not in around]
    if origin is dict:
        return {} if inner[1] in around else {"base": _example(inner[1], [], around)}
    (first, *_) = (each for each in inner if each is not types.NoneType)  # of a union
    return None if first in around else _example(first, metadata, around)


def _example_of_class(kind: Any, metadata: list[Any], around: tuple[type[Any], ...]) -> Any:
    if kind is str:
        return _text(metadata)
    if isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind)):
        return example_of(kind, around)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind)).value
    if kind is types.NoneType:
        return None
    if kind is int:
        return max([1, *(least for each in metadata if (least := getattr(each, "ge", None)))])
    return {float: 0.5, bool: True}.get(kind, 1)


def _text(metadata: list[Any]) -> str:
    """Return a text that matches the patterns in the metadata of a field."""
    for each in metadata:
        pattern = getattr(each, "pattern", None)
        for inner in getattr(each, "metadata", ()):
            pattern = pattern or getattr(inner, "pattern", None)
        if isinstance(pattern, str):
            return next(text for text in _TEXTS if re.search(pattern, text))
    return "a"
