"""A record as JSON that can be written and read again, and the fault of one that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import PydanticSerializationError

from lora_export.core.json_file import encodable

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

__all__ = ["first_finding", "model_json"]


def model_json(model: BaseModel, *, exclude_none: bool = False) -> bytes:
    r"""Return a model as JSON in UTF-8, with a line break at its end.

    A path that is not UTF-8 and a label with half of a character hold surrogates, which neither
    UTF-8 nor readers of JSON allow: they are written as the text of their escape, ``\udcff``.
    """
    try:
        text = model.model_dump_json(indent=1, exclude_none=exclude_none)
    except PydanticSerializationError:
        table = encodable(model.model_dump(mode="json", exclude_none=exclude_none))
        text = (
            type(model).model_validate(table).model_dump_json(indent=1, exclude_none=exclude_none)
        )
    return text.encode() + b"\n"


def first_finding(error: ValidationError, whole: str) -> str:
    """Return the first thing that is wrong with a document: ``rows.0.id: Field required``.

    Args:
        error: What pydantic found.
        whole: The name of the document, for what is wrong with all of it.
    """
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where or whole}: {first['msg']}"
