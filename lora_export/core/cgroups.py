"""The memory limits of this process's control groups, versions 1 and 2."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

__all__ = ["memory_headroom_bytes", "memory_limit_bytes", "own_groups", "read_text"]

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")
_NO_LIMIT_BYTES: Final = 1 << 60
"""Version 1 writes "no limit" as the largest number of pages."""

_FILES: Final = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""By version: controller folder, limit, use, and the part of the use that is given back at need."""


def own_groups(controller: str = "") -> list[Path]:
    """Return the folders of the control group of this process and of its parents.

    Those of version 2, or with `controller` (``memory``) those of version 1. A container may not
    see its own folder but its root, which is its own then.
    """
    root = _CGROUPS / controller
    for line in (read_text(_OWN_CGROUP) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            own = PurePosixPath(path.lstrip("/"))
            return [root / own, *(root / parent for parent in own.parents)]
    return [root]


def memory_limit_bytes() -> int | None:
    """Return the smallest memory limit of the groups that this process is in."""
    return min((limit for limit, _ in _limits()), default=None)


def memory_headroom_bytes() -> int | None:
    """Return what the tightest group leaves: its limit less its use, page cache not counted."""
    return min((limit - used for limit, used in _limits()), default=None)


def read_text(path: Path) -> str | None:
    """Return the stripped text of a small file, or None where it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return None


def _limits() -> list[tuple[int, int]]:
    """Return limit and use in bytes of each group that has a limit."""
    found: list[tuple[int, int]] = []
    for controller, limit_file, use_file, cache_line in _FILES:
        for group in own_groups(controller):
            limit = _number(read_text(group / limit_file))
            if limit is not None and limit < _NO_LIMIT_BYTES:
                used = _number(read_text(group / use_file)) or 0
                found.append((limit, max(0, used - _statistic(group, cache_line))))
    return found


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _statistic(group: Path, name: str) -> int:
    for line in (read_text(group / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _number(value) or 0
    return 0
