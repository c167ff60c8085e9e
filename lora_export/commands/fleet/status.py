"""``fleet status``: the report in a store, as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import InputError
from lora_export.core.json_file import read_table
from lora_export.fleet.fleet_report import REPORT_JSON

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_status"]

_LIMIT_BYTES: Final = 1 << 30
_KEYS: Final = ("counts", "rows", "running", "store")


def read_status(store: Path) -> dict[str, Any]:
    """Return the report in a store.

    Raises:
        InputError: There is none, or it is damaged.
    """
    path = store / REPORT_JSON
    table = read_table(
        path, _LIMIT_BYTES, InputError,
        absent="Give the store of a fleet that was run: lora-export fleet run FLEET.yaml",
        damaged="Run the fleet again: what is done is skipped.",
    )  # fmt: skip
    if any(key not in table for key in _KEYS):
        msg = f"{str(path)!r} is not the report of a fleet"
        raise InputError(msg, hint="Give the store of a fleet.")
    return table
