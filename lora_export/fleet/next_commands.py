"""The command that helps after a row has failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import InputError, LatencyError, ParityError, UnsupportedError
from lora_export.ondevice.printable import shell_command

if TYPE_CHECKING:
    from lora_export.fleet.fleet_plan import Row
    from lora_export.fleet.results import RowResult

__all__ = ["again_command", "next_command"]

_INPUT: Final = frozenset({InputError.exit_code, UnsupportedError.exit_code})
_GATES: Final = frozenset({ParityError.exit_code, LatencyError.exit_code})
_FLAGS: Final = ("task", "mode", "dtype", "opset")


def next_command(row: Row, result: RowResult, source: str) -> str:
    """Return the command to run next.

    Args:
        row: A row that failed.
        result: Its result.
        source: The file that was run.
    """
    recipe: dict[str, Any] = row.job.get("recipe") or {}
    lines = recipe.get("adapters") or []
    if row.kind == "adapter" and lines and result.exit_code in _INPUT:
        return shell_command(["lora-export", "inspect", recipe["base"], lines[0]["source"]])
    if row.kind == "adapter" and lines and result.exit_code in _GATES:
        return _alone(recipe, lines[0])
    if row.kind == "export" and recipe and result.exit_code in _INPUT:
        return shell_command(["lora-export", "inspect", recipe["base"]])
    return again_command(row, source)


def again_command(row: Row, source: str) -> str:
    """Return the command that runs one row again."""
    return shell_command(["lora-export", "fleet", "run", source, "--only", row.id])


def _alone(recipe: dict[str, Any], line: dict[str, Any]) -> str:
    """Return the build of one adapter in an export of its own, whose report has all figures."""
    words = ["--base", recipe["base"], "--adapter", f"{line['name']}={line['source']}"]
    for key in _FLAGS:
        if recipe.get(key) is not None:
            words += [f"--{key}", recipe[key]]
    if scheme := (recipe.get("quantize") or {}).get("weights"):
        words += ["--quantize", scheme]
    return shell_command(["lora-export", "merge-and-build", *words, "-o", f"failed/{line['name']}"])
