"""The lines of a data set: one JSON object each, from a file that a user gives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import InputError
from lora_export.core.json_file import parse_json
from lora_export.ondevice.file_opening import read_file, reason_of
from lora_export.verification.datasets.kind import DatasetLine

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["read_lines"]

_LIMIT_BYTES: Final = 1 << 28
_LINE_LIMIT_BYTES: Final = 1 << 22
_MARK: Final = b"\xef\xbb\xbf"


def read_lines(path: Path, fields: str) -> list[DatasetLine]:
    """Return the examples of a data set, each with the number of its line.

    Args:
        path: The file.
        fields: What a line holds, for messages.

    Raises:
        InputError: The file cannot be read, is too large, or has no examples; a line is longer than
            4 MiB, or no JSON object in UTF-8.
    """
    hint = f"Each line is {fields}."
    try:
        data = read_file(path, _LIMIT_BYTES)
    except OSError as error:
        msg = f"cannot read the data set {str(path)!r}: {reason_of(error)}"
        raise InputError(msg, hint="Check the path: --dataset (verify.dataset).") from error
    rows = [
        DatasetLine(number, _parsed(path, number, line, hint))
        for number, line in enumerate(data.removeprefix(_MARK).split(b"\n"), 1)
        if line.strip()
    ]
    if not rows:
        msg = f"the data set {str(path)!r} has no examples"
        raise InputError(msg, hint=hint)
    return rows


def _parsed(path: Path, number: int, line: bytes, hint: str) -> Mapping[str, Any]:
    where = f"line {number} of the data set {str(path)!r}"
    if len(line) > _LINE_LIMIT_BYTES:
        msg = f"{where} is longer than {_LINE_LIMIT_BYTES} bytes"
        raise InputError(msg, hint=hint)
    try:
        row = parse_json(line)
    except UnicodeEncodeError as error:
        msg = f"{where} has half of a character: {error.object[error.start]!r}"
        raise InputError(msg, hint="Characters past U+FFFF are two escapes.") from error
    except (ValueError, RecursionError) as error:
        at = str(error)
        if isinstance(error, json.JSONDecodeError):  # its own line is that within the line
            at = f"{error.msg}, column {error.colno}"
        msg = f"{where} is not JSON: {at}"
        raise InputError(msg, hint=hint) from error
    if not isinstance(row, dict):
        msg = f"{where} is not an object"
        raise InputError(msg, hint=hint)
    return row
