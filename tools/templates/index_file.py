"""The index of the templates, and the archives that it names, as they are written."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import TYPE_CHECKING, Any, Final

from lora_export.graph.templates.shipped import DATA, FREQUENCIES, INDEX, read_index

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_rows", "write_row", "write_rows", "zipped"]

_DATE: Final = (1980, 1, 1, 0, 0, 0)


def read_rows() -> dict[str, dict[str, Any]]:
    """Return the rows of the index, by file."""
    if not (DATA / INDEX).exists():
        return {}
    return {row["file"]: row for row in json.loads((DATA / INDEX).read_text())["templates"]}


def write_row(row: Mapping[str, Any]) -> None:
    """Put a row into the index, or in place of the one that it has for that file."""
    write_rows({**read_rows(), row["file"]: row})


def write_rows(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the index anew."""
    frequencies = hashlib.sha256((DATA / FREQUENCIES).read_bytes()).hexdigest()
    ordered = [rows[file] for file in sorted(rows)]
    index = {"format": 1, "frequencies": frequencies, "templates": ordered}
    (DATA / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    read_index.cache_clear()


def zipped(members: Mapping[str, bytes]) -> bytes:
    """Return a zip of `members`, the same bytes for the same ones."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, members[name])
    return buffer.getvalue()
