"""The memory that is available, asked before something large is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lora_export.core.cgroups import memory_headroom_bytes, read_text

__all__ = ["available_bytes"]

_MEMINFO: Final = Path("/proc/meminfo")


def available_bytes() -> int | None:
    """Return the bytes that can be taken without swapping, or None where nothing tells.

    The smaller of the kernel's ``MemAvailable`` and what the control groups leave.
    """
    candidates = (_from_meminfo(), memory_headroom_bytes())
    return min((each for each in candidates if each is not None), default=None)


def _from_meminfo() -> int | None:
    for line in (read_text(_MEMINFO) or "").splitlines():
        words = line.split()
        if words[:1] == ["MemAvailable:"] and len(words) > 1 and words[1].isdigit():
            return int(words[1]) * 1024
    return None
