"""A table of settings in JSON, read from an untrusted file."""

from __future__ import annotations

import errno
import json
import re
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.file_opening import read_file, reason_of

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.core.errors import InputError

__all__ = ["JsonObject", "encodable", "is_encodable", "parse_json", "read_json", "read_table"]

_DEPTH_LIMIT: Final = 100
_SHOWN: Final = 80
_HALF: Final = re.compile(rb"\\u[dD][89a-fA-F]")
"""How an escaped half of a character begins: a surrogate."""

JsonObject = dict[str, Any]
"""A JSON object whose keys others define: a ``config.json``, a header, a table of settings."""


def read_table(
    path: Path, limit_bytes: int, error: type[InputError], *, absent: str, damaged: str
) -> JsonObject:
    """Return the JSON object that `path` holds.

    Args:
        path: The file.
        limit_bytes: How large it may be.
        error: What is raised.
        absent: The hint where it cannot be read.
        damaged: The hint where it holds something else.

    Raises:
        InputError: As `error`: it cannot be read, is too large, or holds no JSON object.
    """
    table = read_json(path, limit_bytes, error, absent=absent, damaged=damaged)
    if not isinstance(table, dict):
        msg = f"{str(path)!r} does not hold a table of settings"
        raise error(msg, hint=damaged)
    return table


def read_json(
    path: Path, limit_bytes: int, error: type[InputError], *, absent: str, damaged: str
) -> Any:
    """Return the JSON value that `path` holds; see `read_table`."""
    try:
        return parse_json(read_file(path, limit_bytes))
    except OSError as cause:
        msg = f"cannot read {str(path)!r}: {reason_of(cause)}"
        raise error(msg, hint=absent if cause.errno != errno.EFBIG else damaged) from cause
    except (ValueError, RecursionError) as cause:
        msg = f"{str(path)!r} is not readable JSON: {cause}"
        raise error(msg, hint=damaged) from cause


def parse_json(data: bytes) -> Any:
    """Return the JSON value in `data`, which others have written.

    Raises:
        ValueError: It is not JSON in UTF-8, is nested more than 100 deep, holds NaN, or holds half
            a character (a lone surrogate), which can be neither printed nor written. ``Infinity``
            is read: transformers writes it into configs (``time_step_limit`` of Mamba 2).
        RecursionError: It is nested deeper than Python can read.
    """
    value = json.loads(data.decode("utf-8"))
    if _is_deep(value):
        msg = f"it is nested more than {_DEPTH_LIMIT} levels deep"
        raise ValueError(msg)
    if b"NaN" in data:
        _refuse_nan(value)
    if _HALF.search(data):
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises a kind of ValueError
    return value


def _refuse_nan(value: Any) -> None:
    """Raise a `ValueError` that names the keys above a ``NaN``, which `json` reads."""
    waiting = [("", value)]
    while waiting:
        path, each = waiting.pop()
        if isinstance(each, float) and each != each:  # noqa: PLR0124  (what NaN is)
            msg = f"{repr(path[1:]) if path else 'it'} is NaN, which is not a number"
            raise ValueError(msg)
        if isinstance(each, dict):
            waiting += [(f"{path}.{name[:_SHOWN]}", below) for name, below in each.items()]
        elif isinstance(each, list):
            waiting += [(path, below) for below in each]


def _is_deep(value: Any) -> bool:
    """Whether lists and tables are nested deeper than `_DEPTH_LIMIT`."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEPTH_LIMIT):
        level = [
            each
            for holder in level
            for each in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(each, dict | list)
        ]
        if not level:
            return False
    return True


def encodable(value: Any) -> Any:
    r"""Return a JSON value with the text of an escape in place of each surrogate.

    >>> encodable({"a": ["x\udcff"]})
    {'a': ['x\\udcff']}
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(each) for key, each in value.items()}
    return [encodable(each) for each in value] if isinstance(value, (list, tuple)) else value


def is_encodable(text: str) -> bool:
    r"""Whether UTF-8 can hold `text`: it has no half of a character.

    >>> is_encodable("\U0001f642"), is_encodable("\ud83d")
    (True, False)
    """
    return text.isascii() or encodable(text) == text
