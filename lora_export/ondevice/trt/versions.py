"""Differences between versions of TensorRT, as data; no other module compares versions.

A name that is not in `SINCE` is there in every version from 10.3 to 11.4: a test compares every use
with the API of 10.3, 10.7, 10.13, 10.16 and 11.4. Between two of these, the later one counts.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.libraries import LIBRARIES, TENSORRT, library_row

__all__ = [
    "HARDWARE_LEVELS",
    "OLDEST",
    "SINCE",
    "STRONG_TYPES_ONLY",
    "HardwareLevel",
    "Version",
    "has",
    "parse_version",
    "release",
    "require_level",
    "too_old",
]

Version = tuple[int, int]
"""Major and minor."""

OLDEST: Final[Version] = LIBRARIES[TENSORRT].oldest
"""JetPack 6's; what is older is refused."""

STRONG_TYPES_ONLY: Final[Version] = (11, 0)
"""From here on every network is strongly typed, and the tools have no flag for it."""

SINCE: Final[dict[str, Version]] = {
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": (10, 13),
}
"""The first of the compared versions that has a name."""


class HardwareLevel(NamedTuple):
    """The GPUs that may load a plan: the member of the API, and the name in ``trtexec``."""

    member: str
    trtexec: str


HARDWARE_LEVELS: Final[dict[str, HardwareLevel]] = {
    "none": HardwareLevel("NONE", "none"),
    "ampere+": HardwareLevel("AMPERE_PLUS", "ampere+"),
    "same-compute-capability": HardwareLevel("SAME_COMPUTE_CAPABILITY", "sameComputeCapability"),
}
"""By the name that users type."""


def parse_version(text: str, library: str = TENSORRT) -> Version:
    """Return major and minor of a version.

    >>> parse_version("10.13.3.9"), parse_version("1.7.1.116", "tensorrt-rtx")
    ((10, 13), (1, 7))

    Args:
        text: The version.
        library: Of which library; one that is not known stands in TensorRT's place.

    Raises:
        DeviceError: It does not begin with two numbers, or the library is not supported in it.
    """
    row = library_row(library)
    found = re.match(r"(\d{1,4})\.(\d{1,4})", text)
    if found is None:
        msg = f"{text!r} is not a version of {row.title}"
        raise DeviceError(msg, kind="input")
    version = (int(found[1]), int(found[2]))
    if version < row.oldest:
        msg = f"{row.title} {text} is older than {release(row.oldest)}"
        raise DeviceError(msg, hint=row.install, kind="unsupported")
    if row.below is not None and version[0] >= row.below:
        msg = f"{row.title} {text} is newer than supported: {row.below}.0 and later are not"
        raise DeviceError(msg, hint=row.install, kind="unsupported")
    return version


def release(version: Version) -> str:
    """Return a version as text.

    >>> release((10, 3))
    '10.3'
    """
    return f"{version[0]}.{version[1]}"


def has(version: Version, name: str) -> bool:
    """Whether a version has a name of `SINCE`."""
    return version >= SINCE[name]


def require_level(version: Version, level: str) -> None:
    """Require that a version has a hardware compatibility level.

    Raises:
        DeviceError: It is too old for it.
    """
    name = f"HardwareCompatibilityLevel.{HARDWARE_LEVELS[level].member}"
    if name in SINCE and not has(version, name):
        raise too_old(version, level)


def too_old(version: Version, level: str) -> DeviceError:
    """Return the error for a version without this hardware compatibility level."""
    since = SINCE[f"HardwareCompatibilityLevel.{HARDWARE_LEVELS[level].member}"]
    msg = (
        f"hardware compatibility {level!r} needs TensorRT {release(since)}, not {release(version)}"
    )
    return DeviceError(msg, hint="Choose none or ampere+.", kind="unsupported")
