"""TensorRT engines of an export, by the compute capability that they were built for.

engines/<graph>.<target>.trt<version>.plan    and beside each a ``.json`` that says, among other
                                              things, the ``compute_capability``
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lora_export.base.errors import ExportDirectoryError, UnsupportedError, UsageError
from lora_export.base.files import resolve_inside
from lora_export.base.json_file import read_table

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["engines_of"]

_LIMIT_BYTES: Final = 1 << 22
_AGAIN: Final = "Build the engine again."
_CAPABILITY: Final = re.compile(r"\d{1,2}\.\d")
_PLAN: Final = re.compile(r"(?P<graph>[^.]+)\..*\.plan")


def engines_of(root: Path, graph: str) -> dict[str, Path]:
    """Return the plan of a graph for each compute capability (``8.7``).

    Args:
        root: The export directory.
        graph: The graph's name.

    Raises:
        UnsupportedError: There is none.
        UsageError: There are two for one capability.
        ExportDirectoryError: A plan's record is missing or damaged.
    """
    found: dict[str, Path] = {}
    folder = resolve_inside(root, "engines")
    for path in sorted(folder.glob("*.plan")) if folder.is_dir() else ():
        match = _PLAN.fullmatch(path.name)
        if match is None or match["graph"] != graph:
            continue
        path = resolve_inside(root, f"engines/{path.name}")  # noqa: PLW2901  (no link outside)
        capability = _capability(path)
        if capability in found:
            msg = (
                f"{found[capability].name!r} and {path.name!r} are both for compute capability "
                f"{capability}"
            )
            raise UsageError(msg, hint="Keep the one of the server's TensorRT version.")
        found[capability] = path
    if not found:
        msg = f"the export {str(root)!r} has no TensorRT engine of {graph!r}"
        raise UnsupportedError(
            msg, hint="Build one on a machine with the server's GPU: lora-export build"
        )
    return found


def _capability(plan: Path) -> str:
    """Return what a plan was built for, as its record says."""
    path = plan.with_name(f"{plan.name.removesuffix('.plan')}.json")
    record = read_table(path, _LIMIT_BYTES, ExportDirectoryError, absent=_AGAIN, damaged=_AGAIN)
    value = record.get("compute_capability")
    text = ".".join(map(str, value)) if isinstance(value, list) else str(value)
    if not _CAPABILITY.fullmatch(text):
        msg = f"{str(path)!r} says compute_capability is {value!r}"
        raise ExportDirectoryError(msg, hint=_AGAIN)
    return text
