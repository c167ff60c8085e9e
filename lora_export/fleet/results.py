"""The results of rows, as files in the store: one for each key, written when its row has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_export.core.files import atomic_write_bytes
from lora_export.core.model_json import model_json
from lora_export.fleet.content import FLEET_FOLDER
from lora_export.ondevice.file_opening import read_file

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.fleet.fleet_plan import Row

__all__ = ["Ended", "Results", "RowResult", "RowState"]

_LIMIT_BYTES: Final = 1 << 24
RowState = Literal["waiting", "running", "done", "skipped", "failed", "blocked"]
Ended = Literal["done", "failed"]


class RowResult(BaseModel):
    """The result of a row.

    Attributes:
        key: The row's key.
        status: ``done`` or ``failed``.
        exit_code: The code with which a command of its own would end.
        message: What is wrong, and what to do next; empty where it is done.
        kind: The class of the error.
        verdict: ``pass``, ``fail``, ``ambiguous`` or ``unverified``, of an adapter.
        measures: Figures: ``relative_l2``, ``latency_ratio``, ``gain``, ``bytes``.
        files: The files that it made, relative to the store, with their SHA-256.
        outside: Files that it made elsewhere, by their absolute paths.
        notes: What the user should know.
        seconds: How long it took.
        attempts: How often it was begun.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    key: str
    status: Ended
    exit_code: int = 0
    message: str = ""
    kind: str = ""
    verdict: str | None = None
    measures: dict[str, float] = {}
    files: dict[str, str] = {}
    outside: dict[str, str] = {}
    notes: list[str] = []
    seconds: float = Field(default=0.0, ge=0)
    attempts: int = Field(default=1, ge=1)


class Results:
    """The results in a store.

    Args:
        store: The directory of the fleet.
    """

    def __init__(self, store: Path) -> None:
        self._folder = store / FLEET_FOLDER / "results"
        self._logs = store / FLEET_FOLDER / "logs"

    def log_of(self, row: Row) -> Path:
        """Return the file that says what a row did."""
        return self._logs / f"{row.key}.log"

    def read(self, row: Row) -> RowResult | None:
        """Return the result of a row with this key; None where there is none that can be read."""
        try:
            raw = read_file(self._path(row.key), _LIMIT_BYTES)
            found = RowResult.model_validate_json(raw)
        except (OSError, ValidationError):
            return None
        return found if found.key == row.key else None

    def write(self, result: RowResult) -> None:
        """Keep a result.

        Raises:
            StorageError: The disk refuses.
        """
        path = self._path(result.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, model_json(result))

    def forget(self, row: Row) -> None:
        """Remove the result of a row, whose artifact is gone or damaged."""
        self._path(row.key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def result_from(table: dict[str, Any], row: Row) -> RowResult:
    """Return what a worker answered as the result of a row.

    Raises:
        ValueError: It is no result.
    """
    return RowResult.model_validate({**table, "key": row.key})
