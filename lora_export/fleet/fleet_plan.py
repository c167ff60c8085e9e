"""The plan of a fleet: one row for each thing that is made, in an order that can be run.

    plan.json {format_version, tool, store, rows: [{id, kind, key, needs, after, inputs, job, …}]}

A row is a job with a key: a hash over all that its result depends on. Two rows with one key make
the same thing, so what was made with a key is not made again.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lora_export.core.errors import InputError, UnsupportedError, UsageError
from lora_export.core.json_file import parse_json
from lora_export.core.model_json import first_finding, model_json
from lora_export.fleet.row_place import RowPlace
from lora_export.ondevice.file_opening import read_file, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from typing_extensions import Self

__all__ = ["PLAN_FORMAT", "Estimate", "Plan", "Row", "key_of", "read_plan"]

PLAN_FORMAT: Final = 1
_LIMIT_BYTES: Final = 1 << 30
_HINT: Final = "Make it again: lora-export fleet plan FLEET.yaml -o plan.json"

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Estimate(_Part):
    """The resources that a row is expected to take.

    Attributes:
        memory_bytes: Its peak memory.
        disk_bytes: What it leaves in the store.
        seconds: Its time on two cores.
    """

    memory_bytes: int = Field(ge=0)
    disk_bytes: int = Field(ge=0)
    seconds: float = Field(ge=0)


class Row(RowPlace):
    """One job, and the place of what it makes.

    Attributes:
        id: Its name: ``KIND:BASE/VARIANT[/ADAPTER][@TARGET]``.
        needs: Rows that have to succeed before it.
        after: Rows that have to end before it, however they end.
        inputs: The content of each folder or file that it reads, by path; see `fleet.content`.
        job: What the worker is told: settings of a recipe, and of the kind.
        estimate: What it is expected to take.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    id: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    inputs: dict[str, _Sha256] = Field(default={})
    job: dict[str, Any]
    estimate: Estimate


class Plan(_Part):
    """The contents of ``plan.json``.

    Attributes:
        format_version: 1.
        tool: The version of lora-export that made it.
        versions: Those of the libraries that results depend on, besides.
        targets: The targets of the fleet.
        store: The directory that results go to.
        rows: The jobs; each stands behind those that it waits for.
    """

    format_version: int = PLAN_FORMAT
    tool: str
    versions: dict[str, str] = {}
    targets: tuple[str, ...] = ()
    store: str
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        known: set[str] = set()
        for row in self.rows:
            if row.id in known:
                msg = f"the row {row.id!r} is there twice"
                raise ValueError(msg)
            if missing := sorted({*row.needs, *row.after} - known):
                msg = f"the row {row.id!r} waits for {missing[0]!r}, which is not before it"
                raise ValueError(msg)
            known.add(row.id)
        return self

    def as_bytes(self) -> bytes:
        """Return the contents of its file."""
        return model_json(self)

    def only(self, ids: Iterable[str]) -> Plan:
        """Return the plan of some rows and of all that they wait for.

        Raises:
            UsageError: There is no row of that name.
        """
        by_id = {row.id: row for row in self.rows}
        wanted: set[str] = set()
        waiting = list(ids)
        while waiting:
            name = waiting.pop()
            if name not in by_id:
                from lora_export.core.suggestions import did_you_mean

                msg = f"the plan has no row {name!r}"
                raise UsageError(msg, hint=did_you_mean(name, by_id))
            if name not in wanted:
                wanted.add(name)
                waiting += [*by_id[name].needs, *by_id[name].after]
        return self.model_copy(update={"rows": tuple(r for r in self.rows if r.id in wanted)})


def key_of(**parts: object) -> str:
    """Return the SHA-256 of JSON values, the same for equal ones.

    >>> key_of(a=1, b=[2]) == key_of(b=[2], a=1)
    True
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_plan(path: Path) -> Plan:
    """Read ``plan.json``.

    Raises:
        InputError: It cannot be read, or is no plan.
        UnsupportedError: A newer version wrote it.
    """
    try:
        table = parse_json(read_file(path, _LIMIT_BYTES))
    except OSError as error:
        msg = f"cannot read the plan {str(path)!r}: {reason_of(error)}"
        raise InputError(msg, hint=_HINT) from error
    except (ValueError, RecursionError) as error:
        msg = f"the plan {str(path)!r} is damaged: {error}"
        raise InputError(msg, hint=_HINT) from error
    version = table.get("format_version") if isinstance(table, dict) else None
    if isinstance(version, int) and version > PLAN_FORMAT:
        msg = f"the plan {str(path)!r} has format_version {version}; this reads {PLAN_FORMAT}"
        raise UnsupportedError(msg, hint="Upgrade lora-export.")
    try:
        return Plan.model_validate(table)
    except ValidationError as error:
        msg = f"the plan {str(path)!r} is damaged: {first_finding(error, 'the document')}"
        raise InputError(msg, hint=_HINT) from error
