"""The folders one or two levels below a path, for messages that suggest the right one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["folders_below", "list_names"]

_LOOKED_AT: Final = 1000
_SHOWN: Final = 8
_STEP: Final = re.compile(r"(?:checkpoint|step|epoch)[-_](\d+)")


def folders_below(folder: Path, wanted: Callable[[Path], bool]) -> list[str]:
    """Return the folders below `folder` that are `wanted`, as relative paths, sorted.

    Folders of a trainer's steps (``checkpoint-500``) are sorted by their numbers. Unreadable ones
    are passed over, and of very many only the first 1,000 are looked at.
    """
    found: list[str] = []
    looked_at = 0
    for depth in ("*", "*/*"):
        try:
            for each in folder.glob(depth):
                looked_at += 1
                if looked_at > _LOOKED_AT:
                    break
                if each.is_dir() and wanted(each):
                    found.append(each.relative_to(folder).as_posix())
        except OSError:
            continue
    return sorted(found, key=_in_order)


def _in_order(name: str) -> tuple[str, int, str]:
    step = _STEP.fullmatch(name.rpartition("/")[2])
    return (name.rpartition("/")[0], int(step[1]) if step else -1, name)


def list_names(names: list[str]) -> str:
    """Return names for a message; of a trainer's steps, the newest is said.

    >>> list_names(["checkpoint-500", "checkpoint-1000"])
    "'checkpoint-500', 'checkpoint-1000' (the newest)"
    """
    shown = names if len(names) <= _SHOWN else [*names[: _SHOWN - 1], names[-1]]
    words = [repr(name) for name in shown]
    if len(shown) < len(names):
        words.insert(-1, f"… {len(names) - len(shown)} more …")
    if len(names) > 1 and all(_STEP.fullmatch(name.rpartition("/")[2]) for name in names):
        words[-1] += " (the newest)"
    return ", ".join(words)
