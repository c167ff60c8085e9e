"""The rows of a fleet as a table of adapters by targets, with the figures of each adapter.

    {base, variant, adapter, verdict, measures, bytes, seconds, targets: {TARGET: {status, row}}}

An adapter is on an ONNX Runtime target once its own row is done; on others it is what the row of
its engine, of the bundle that holds it, or of the models that serve it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.targets import RTX, TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["TRITON", "adapter_table"]

TRITON: Final = "triton"
"""The column of what a Triton repository serves."""

_WORSE: Final = ("failed", "blocked", "running", "waiting")
"""States of an adapter's own row that hold for all of its targets."""


def adapter_table(
    rows: Sequence[Mapping[str, Any]], targets: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a line for each adapter, and one for a base that has none.

    Args:
        rows: The rows of the report.
        targets: The targets of the fleet.
    """
    exports: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        exports.setdefault((row["base"], row["variant"]), []).append(row)
    lines = []
    for own in exports.values():
        adapters = [row for row in own if row["kind"] == "adapter"]
        shared = {_column(row): row for row in own
                  if row["adapter"] is None and row["kind"] != "export"}  # fmt: skip
        engines_of: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in own:
            if row["kind"] == "engine" and row["adapter"] is not None:
                engines_of.setdefault(row["adapter"], {})[_column(row)] = row
        for row in adapters or [each for each in own if each["kind"] == "export"]:
            engines = engines_of.get(row["adapter"], {}) if row["adapter"] else {}
            lines.append(_line(row, {**shared, **engines}, targets))
    return lines


def _column(row: Mapping[str, Any]) -> str:
    return TRITON if row["kind"] == "triton" else str(row["target"])


def _line(
    row: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], targets: Sequence[str]
) -> dict[str, Any]:
    columns = [*targets, *([TRITON] if TRITON in others else [])]
    cells = {name: _cell(row, others.get(name), name) for name in columns}
    measures = dict(row.get("measures") or {})
    extra = [each for name, each in others.items() if name in columns and each.get("measures")]
    own = [each for each in extra if each["adapter"] is not None]
    return {
        "base": row["base"],
        "variant": row["variant"],
        "adapter": row["adapter"],
        "status": row["status"],
        "verdict": row.get("verdict"),
        "measures": {key: value for key, value in measures.items() if key != "bytes"},
        "bytes": sum(int(each["measures"].get("bytes", 0)) for each in (row, *own)
                     if each.get("measures")),
        "seconds": round(sum(each.get("seconds", 0.0) for each in (row, *own)), 3),
        "targets": {name: cell for name, cell in cells.items() if cell is not None},
    }  # fmt: skip


def _cell(
    row: Mapping[str, Any], other: Mapping[str, Any] | None, name: str
) -> dict[str, str] | None:
    """Return the state of an adapter on a target; None where nothing is made for it."""
    if row["status"] in _WORSE:
        return {"status": row["status"], "row": row["id"]}
    if other is not None:
        return {"status": other["status"], "row": other["id"]}
    place = TARGETS.get(name)
    if name in {RTX, TRITON} or (place is not None and place.tensorrt):
        return None
    return {"status": row["status"], "row": row["id"]}
