"""The results of rows, as files in the store: one for each key, written when its row has ended."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_export.core.files import atomic_write_bytes
from lora_export.core.model_json import model_json
from lora_export.fleet.content import FLEET_FOLDER
from lora_export.ondevice.file_opening import read_file

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.fleet.fleet_plan import Row

__all__ = [
    "Ended",
    "Provenance",
    "Results",
    "RowResult",
    "RowState",
    "log_file",
    "result_from",
]

_LIMIT_BYTES: Final = 1 << 24
RowState = Literal["waiting", "running", "done", "skipped", "failed", "blocked"]
Ended = Literal["done", "failed"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Provenance(BaseModel):
    """The origin of an artifact.

    Attributes:
        id: The row that made it; `kind` to `target` are the row's.
        artifact: The artifact, relative to the store.
        inputs: The SHA-256 of the content of each input, by its path.
        needs: The keys of the rows that it was made from.
        tool: The version of lora-export.
        versions: Those of the libraries.
        command: The command that makes it again.
        date: When it was made, in UTC.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    id: str
    kind: str
    base: str
    variant: str
    adapter: str | None = None
    target: str | None = None
    artifact: str
    inputs: dict[str, str] = {}
    needs: dict[str, str] = {}
    tool: str
    versions: dict[str, str] = {}
    command: str
    date: str

    def made_of(self) -> dict[str, Any]:
        """Return what it was made of, and how, as JSON values."""
        keys = {"inputs", "needs", "tool", "versions", "command", "date"}
        return self.model_dump(mode="json", include=keys)


class RowResult(BaseModel):
    """The result of a row.

    Attributes:
        key: The row's key.
        status: ``done`` or ``failed``.
        exit_code: The code with which a command of its own would end.
        message: What is wrong, and what to do next; empty where it is done.
        kind: The class of the error.
        verdict: ``pass``, ``fail``, ``ambiguous`` or ``unverified``, of an adapter.
        measures: Figures: ``relative_l2``, ``latency_ratio``, ``gain``, ``loss`` (relative
            L2 error of the quantized outputs), ``bytes``.
        files: The files that it made, relative to the store, with their SHA-256.
        outside: Files that it made elsewhere, by their absolute paths.
        notes: What the user should know.
        seconds: How long it took.
        attempts: How often it was begun.
        provenance: What it was made of, and how.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    key: str
    status: Ended
    exit_code: int = 0
    message: str = ""
    kind: str = ""
    verdict: str | None = None
    measures: dict[str, _Finite] = {}
    files: dict[str, str] = {}
    outside: dict[str, str] = {}
    notes: list[str] = []
    seconds: _Finite = Field(default=0.0, ge=0)
    attempts: int = Field(default=1, ge=1)
    provenance: Provenance | None = None


def log_file(key: str) -> str:
    """Return the log of the row with a key, relative to the store."""
    return f"{FLEET_FOLDER}/logs/{key}.log"


class Results:
    """The results in a store.

    Args:
        store: The directory of the fleet.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._folder = store / FLEET_FOLDER / "results"

    def log_of(self, row: Row) -> Path:
        """Return the file that says what a row did."""
        return self._store / log_file(row.key)

    def all(self) -> list[RowResult]:
        """Return all results that can be read, of rows of this plan and of earlier ones."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(OSError, ValidationError):
                result = RowResult.model_validate_json(read_file(path, _LIMIT_BYTES))
                if result.key == path.stem:
                    found.append(result)
        return found

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
