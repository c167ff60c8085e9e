"""``lora_export_layout.json``: the record in a directory that ``layout`` wrote for a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, Field, ValidationError

from lora_export.core.errors import ExportDirectoryError
from lora_export.core.files import resolve_inside
from lora_export.core.model_json import model_json
from lora_export.core.record_values import RECORD_CONFIG, Sha256
from lora_export.ondevice.file_opening import read_file, reason_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LAYOUT_RECORD", "LayoutFile", "LayoutRecord", "layout_bytes", "read_layout"]

LAYOUT_RECORD: Final = "lora_export_layout.json"
_LIMIT_BYTES: Final = 1 << 24
_HINT: Final = "Remove the directory, and write it again: lora-export layout."


class _Record(BaseModel):
    model_config = RECORD_CONFIG


class LayoutFile(_Record):
    """The size and SHA-256 of one file."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class LayoutRecord(_Record):
    """The source of a layout, and its files.

    Attributes:
        format_version: The version of this record.
        tool: What wrote the directory.
        runtime: The runtime that it is for.
        export: The name of the export directory.
        manifest: The SHA-256 of the export's manifest.
        base: The fingerprint of the export's base.
        adapters: The adapters in it; none for the base.
        files: The files, this record left out.
    """

    format_version: int = Field(default=1, ge=1, le=1)
    tool: str
    runtime: str
    export: str
    manifest: Sha256
    base: Sha256
    adapters: list[str]
    files: dict[str, LayoutFile]


def layout_bytes(record: LayoutRecord) -> bytes:
    """Return the contents of ``lora_export_layout.json``."""
    return model_json(record)


def read_layout(folder: Path) -> LayoutRecord:
    """Return the record in a directory that ``layout`` wrote.

    Raises:
        ExportDirectoryError: There is none, it is damaged, or a name in it leads outside.
    """
    path = folder / LAYOUT_RECORD
    try:
        record = LayoutRecord.model_validate_json(read_file(path, _LIMIT_BYTES))
    except OSError as error:
        msg = f"cannot read {str(path)!r}: {reason_of(error)}"
        raise ExportDirectoryError(msg, hint=_HINT) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        msg = f"{str(path)!r} is damaged: {where}: {first['msg']}"
        raise ExportDirectoryError(msg, hint=_HINT) from error
    for file in record.files:
        resolve_inside(folder, file)
    return record
