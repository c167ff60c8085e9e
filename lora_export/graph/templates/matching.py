"""Sizes, numbers and choices that a config has for a family, or the key that has no template.

Every key is looked at; one that is not in the family's table, and a value that is none of the
expected, is a `NoTemplateError` that names it. Settings are first brought to one spelling:

    rope_theta, rope_scaling  →  rope_parameters      hidden_size  →  n_embd (GPT-2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.graph.templates.formulas import NotExactError, evaluate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.graph.templates.family import Family

__all__ = ["Matched", "NoTemplateError", "match"]

_LEAST: Final = 2
_MOST: Final = 2**31 - 1
_ROPE: Final = "rope_parameters"
_LLAMA3: Final = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
_PROBLEM_TYPES: Final = frozenset(
    {None, "regression", "single_label_classification", "multi_label_classification"}
)
_MESSAGE_LIMIT: Final = 60


class NoTemplateError(Exception):
    """No template serves a config; the text names the key, with its value, that has none."""


@dataclass(frozen=True)
class Matched:
    """A config as its family's table reads it.

    Attributes:
        sizes: The sizes and the float settings, by their names in formulas.
        choices: The settings that are compared.
        rope: The rotary settings, as the tables of frequencies are named; empty without.
    """

    sizes: Mapping[str, int | float]
    choices: Mapping[str, Any]
    rope: str = ""


def match(family: Family, config: Mapping[str, Any]) -> Matched:
    """Return the sizes and choices of `config`, which is one of `family`.

    Raises:
        NoTemplateError: A key or value is not in the family's table.
    """
    settings = _spelled(family, config)
    rope = _take_rope(family, settings) if family.rotary else ""
    settings.pop("model_type", None)
    for key in [key for key, value in settings.items() if value is None]:
        if key in family.nullable:
            del settings[key]
    choices = _choices(family, settings)
    window = _take_window(family, settings)
    sizes = {**_sizes(family, settings), **window}
    if family.layer_types:
        types = settings.pop("layer_types", None)
        if types is not None and types != ["full_attention"] * int(sizes["layers"]):
            raise _refuse("layer_types", types)
    _check_irrelevant(family, settings, sizes)
    for condition in family.conditions:
        if len({_exact(side, sizes) for side in condition.split("=")}) > 1:
            msg = f"{condition} does not hold"
            raise NoTemplateError(msg)
    choices |= _grouping(sizes)
    if family.window is not None:
        choices["windowed"] = bool(window)
    return Matched(sizes, choices, rope)


def _refuse(key: str, value: Any) -> NoTemplateError:
    return NoTemplateError(f"{key} {str(value)[:_MESSAGE_LIMIT]!r}")


def _spelled(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in config.items():
        name = family.spellings.get(key, key)
        if name in settings:
            raise _refuse(key, value)
        settings[name] = value
    return settings


def _take_rope(family: Family, settings: dict[str, Any]) -> str:
    """Return the rotary settings as text, taken out of `settings`."""
    theta = settings.pop("rope_theta", None)
    scaling = settings.pop("rope_scaling", None)
    given = settings.pop(_ROPE, None)
    if given is not None and (theta is not None or scaling is not None):
        raise _refuse(_ROPE, given)
    table = given if given is not None else scaling if scaling is not None else {}
    if not isinstance(table, dict):
        raise _refuse(_ROPE, table)
    table = dict(table)
    kind = table.pop("rope_type", None) or "default"
    if "type" in table and table.pop("type") != kind:
        raise _refuse("rope_scaling", scaling)
    if "partial_rotary_factor" in family.choices:
        factor = table.pop("partial_rotary_factor", 1.0)
        if type(factor) is not float or factor != 1.0:
            raise _refuse("partial_rotary_factor", factor)
    own = table.pop("rope_theta", None)
    theta = own if own is not None else theta
    theta = family.absent["rope_theta"] if theta is None else theta
    if type(theta) not in {int, float} or not theta > 1:
        raise _refuse("rope_theta", theta)
    wanted: tuple[str, ...] = () if kind == "default" else _LLAMA3 if kind == "llama3" else ("",)
    if (
        kind not in family.rope_types
        or table.keys() != set(wanted)
        or any(type(v) not in {int, float} for v in table.values())
    ):
        raise _refuse(_ROPE, given if given is not None else scaling)
    return ":".join((kind, str(float(theta)), *(str(float(table[name])) for name in wanted)))


def _choices(family: Family, settings: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, values in family.all_choices.items():
        absent = family.absent.get(key, values[0])
        value = settings.pop(key, absent)
        if not any(type(value) is type(each) and value == each for each in values):
            raise _refuse(key, value)
        if len(values) > 1:
            found[key] = value
    return found


def _sizes(family: Family, settings: dict[str, Any]) -> dict[str, int | float]:
    sizes: dict[str, int | float] = {}
    formulas: dict[str, str] = {}
    for name, key in (*family.sizes.items(), *family.floats.items()):
        value = settings.pop(key, family.absent.get(key))
        if isinstance(value, str) and value.startswith("="):
            formulas[name] = value[1:]
            continue
        if name in family.floats:
            if type(value) is not float or not 0 < value < 1 or math.isnan(value):
                raise _refuse(key, value)
        elif type(value) is not int or not _least(name) <= value <= _MOST:
            raise _refuse(key, value)
        sizes[name] = value
    for name, formula in {**formulas, **family.derived}.items():
        sizes[name] = _exact(formula, sizes)
    return sizes


def _least(name: str) -> int:
    """Return the least value of a size; all heads may share one head of keys and values."""
    return 1 if name == "kv_heads" else _LEAST


def _take_window(family: Family, settings: dict[str, Any]) -> dict[str, int]:
    """Return the size of the sliding window, taken out of `settings`; nothing without one."""
    if family.window is None:
        return {}
    value = settings.pop(family.window, family.absent.get(family.window))
    if value is None:
        return {}
    if type(value) is not int or not _LEAST <= value <= _MOST:
        raise _refuse(family.window, value)
    return {"window": value}


def _exact(formula: str, sizes: Mapping[str, int | float]) -> int:
    try:
        return evaluate(formula, sizes)
    except NotExactError as error:
        raise NoTemplateError(str(error)) from error


def _check_irrelevant(
    family: Family, settings: Mapping[str, Any], sizes: Mapping[str, int | float]
) -> None:
    kinds = family.all_irrelevant
    for key, value in settings.items():
        if key not in kinds or type(value) not in kinds[key]:
            raise _refuse(key, value)
    if (problem := settings.get("problem_type")) not in _PROBLEM_TYPES:
        raise _refuse("problem_type", problem)
    padding = settings.get("pad_token_id", family.absent.get("pad_token_id"))
    if padding is not None and not 0 <= padding < sizes["vocab"]:
        raise _refuse("pad_token_id", padding)


def _grouping(sizes: Mapping[str, int | float]) -> dict[str, Any]:
    """Return whether heads share keys and values: none, some of them, or all of them the same."""
    if "kv_heads" not in sizes:
        return {}
    shared = "one" if sizes["kv_heads"] == 1 else sizes["kv_heads"] != sizes["heads"]
    return {"grouped": shared}
