"""How much memory there is, before something asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["available_bytes"]

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USE: Final = Path("/sys/fs/cgroup/memory.current")


def available_bytes() -> int | None:
    """Return the bytes that can be taken without swapping, or None where nothing tells.

    The smaller of the kernel's ``MemAvailable`` and what the control group has left.
    """
    candidates = [each for each in (_from_meminfo(), _from_cgroup()) if each is not None]
    return min(candidates, default=None)


def _from_meminfo() -> int | None:
    try:
        for line in _MEMINFO.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _from_cgroup() -> int | None:
    try:
        limit = _CGROUP_LIMIT.read_text("ascii").strip()
        return None if limit == "max" else int(limit) - int(_CGROUP_USE.read_text("ascii"))
    except (OSError, ValueError):
        return None
