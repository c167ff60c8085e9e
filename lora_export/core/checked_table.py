"""A table of settings from somebody's file, checked against a pydantic model where it is read.

The model lists the settings that are read, each with the sentence that a message completes ("it
must be …") as its description; everything else in the table is left alone. The table itself is what
is used afterwards, as it stands in the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lora_export.core.shown_value import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.errors import InputError

__all__ = ["Count", "Integers", "Names", "Number", "Table", "Text", "check_table"]

_SHOWN: Final = 60


class Table(BaseModel):
    """The settings of a kind of file that are read."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, strict=True, protected_namespaces=(), defer_build=True
    )


def _all_texts(values: list[Any]) -> list[str]:
    if not all(isinstance(each, str) for each in values):
        odd = next(each for each in values if not isinstance(each, str))
        msg = f"{shown(odd, _SHOWN)} is not text"
        raise ValueError(msg)
    return values


def _all_integers(values: list[Any]) -> list[int]:
    odd = [each for each in values if type(each) is not int or not -(1 << 63) <= each < 1 << 63]
    if odd:
        msg = f"{shown(odd[0], _SHOWN)} is not an integer of 64 bits"
        raise ValueError(msg)
    return values


Text = str
Names = Annotated[list[Any], AfterValidator(_all_texts)]
"""A list of texts; checked as a whole, for a list of a million wrong values is one error."""

Integers = Annotated[list[Any], AfterValidator(_all_integers)]
"""A list of integers that NumPy can hold."""

Count = Annotated[int, Field(ge=0, lt=1 << 31)]
"""A size: a non-negative integer that is not a bool."""

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
"""A finite number that is not a bool and that float32 can hold."""


def check_table(
    table: Mapping[str, Any],
    model: type[Table],
    error: type[InputError],
    *,
    where: str,
    hint: str,
) -> None:
    """Require that the settings of `table` have the types of `model`.

    Args:
        table: The settings.
        model: Those that are read.
        error: What is raised.
        where: The file, for the message.
        hint: What to do about it.

    Raises:
        InputError: As `error`: a setting has another type; it is named, with its value.
    """
    try:
        model.model_validate(dict(table))
    except ValidationError as cause:
        first = cause.errors(include_url=False)[0]
        msg = _message(table, model, [str(part) for part in first["loc"]], where)
        if first["type"] == "value_error":  # of a validator of ours, whose text says more
            msg += f": {first['ctx']['error']}"
        raise error(msg, hint=hint) from cause


def _message(table: Mapping[str, Any], model: type[Table], path: list[str], where: str) -> str:
    """Return what is wrong with the setting at `path`, which may lead through a section."""
    names: list[str] = []
    value: Any = table
    expected = "of another type"
    for name in path:
        field = model.model_fields.get(name)
        if field is None or not isinstance(value, dict):
            break
        names.append(name)
        value = value.get(name)
        expected = field.description or expected
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Table):
            model = section
    return f"{where} has the {'.'.join(names)} {shown(value, _SHOWN)}; it must be {expected}"
