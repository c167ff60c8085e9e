"""A table of settings in JSON, read from an untrusted file."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

from lora_export.ondevice.file_opening import read_file, reason_of

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.core.errors import InputError

__all__ = ["JsonObject", "read_json", "read_table"]

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
        return json.loads(read_file(path, limit_bytes).decode("utf-8"))
    except OSError as cause:
        msg = f"cannot read {str(path)!r}: {reason_of(cause)}"
        raise error(msg, hint=absent if cause.errno != errno.EFBIG else damaged) from cause
    except (ValueError, RecursionError) as cause:
        msg = f"{str(path)!r} is not readable JSON: {cause}"
        raise error(msg, hint=damaged) from cause
