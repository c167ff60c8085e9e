"""``fleet status``: the report in a store, as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import InputError
from lora_export.core.json_file import parse_json, read_table
from lora_export.fleet.fleet_report import REPORT_JSON
from lora_export.fleet.store.open_store import home_of, open_store
from lora_export.fleet.store.url import is_url
from lora_export.fleet.stored_report import require_report

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["last_report", "read_status", "was_run"]

_LIMIT_BYTES: Final = 1 << 30


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
    return _checked(table, str(path))


def last_report(place: str) -> dict[str, Any]:
    """Return the report of the last run of a store, on whichever machine it was.

    A run that has not ended yet is seen on its own machine.

    Args:
        place: A directory or a URL.

    Raises:
        InputError: There is none, or it is damaged.
        StorageError: The storage refuses.
    """
    raw = open_store(place).get_document(REPORT_JSON, _LIMIT_BYTES) if is_url(place) else None
    if raw is None:
        return read_status(home_of(place))
    where = f"{place}/{REPORT_JSON}"
    try:
        table = parse_json(raw)
    except (ValueError, RecursionError) as error:
        msg = f"{where!r} is damaged: {error}"
        raise InputError(msg, hint="Run the fleet again: what is done is skipped.") from error
    return _checked(table, where)


def was_run(place: str) -> bool:
    """Return whether a store, a directory or a URL, has the report of a run."""
    if is_url(place) and open_store(place).get_document(REPORT_JSON, _LIMIT_BYTES) is not None:
        return True
    return (home_of(place) / REPORT_JSON).is_file()


def _checked(table: Any, where: str) -> dict[str, Any]:
    try:
        require_report(table)
    except ValueError as error:
        msg = f"{where!r} is not the report of a fleet: {error}"
        raise InputError(msg, hint="Give the store of a fleet.") from error
    found: dict[str, Any] = table
    return found
