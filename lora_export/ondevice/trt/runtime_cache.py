"""The file of a runtime cache: kernels that TensorRT for RTX compiled of a plan, for one GPU.

    engines/<graph>.<target>.rtx<version>.<GPU>.cache

A line that names the format, a line of JSON (`CacheKey`, and the SHA-256 of what follows), then the
library's own bytes. It saves time and nothing else: one that is damaged, or is
of another plan, GPU, driver or release, is not used, and is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.device_errors import StorageError
from lora_export.ondevice.device_files import atomic_write_bytes
from lora_export.ondevice.file_opening import read_file, reason_of
from lora_export.ondevice.trt.build_record import FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["CacheKey", "cache_file", "is_cache_file", "read_cache", "write_cache"]

_HEAD: Final = b"lora-export runtime cache 1\n"
_SUFFIX: Final = ".cache"
_LIMIT_BYTES: Final = 1 << 31
_LONGEST_NAME: Final = 60


@dataclass(frozen=True)
class CacheKey:
    """The circumstances that compiled kernels are good for.

    Attributes:
        plan: The SHA-256 of the plan.
        library: The library that compiled them.
        version: Its version.
        gpu: The name of the GPU.
        compute_capability: Its compute capability.
        driver: The version of CUDA that its driver supports. The library compares the driver
            itself, when it reads the kernels.
    """

    plan: str
    library: str
    version: str
    gpu: str
    compute_capability: str
    driver: str


def cache_file(plan: Path, gpu: str) -> Path:
    """Return the path of the runtime cache of a plan on a GPU, beside the plan.

    >>> from pathlib import Path
    >>> cache_file(Path("engines/one.rtx.rtx1.7.1.plan"), "NVIDIA GeForce RTX 4090").name
    'one.rtx.rtx1.7.1.nvidia-geforce-rtx-4090.cache'
    """
    word = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")[:_LONGEST_NAME] or "gpu"
    return plan.parent / f"{plan.name.removesuffix('.plan')}.{word}{_SUFFIX}"


def is_cache_file(path: str) -> bool:
    """Whether a path, relative to an export or a bundle, is that of a runtime cache.

    >>> is_cache_file("engines/one.rtx.rtx1.7.1.rtx-4090.cache"), is_cache_file("one.cache")
    (True, False)
    """
    return path.startswith(f"{FOLDER}/") and path.endswith(_SUFFIX) and path.count("/") == 1


def read_cache(path: Path, key: CacheKey, tell: Callable[[str], None]) -> bytes | None:
    """Return the kernels in a file; None where there are none for `key`.

    Args:
        path: The file.
        key: What they have to be good for.
        tell: Told where the file is damaged.
    """
    if not os.path.lexists(path):
        return None
    try:
        found, kernels = _split(read_file(path, _LIMIT_BYTES))
    except OSError:
        return None  # they are compiled again, and written: that tells why it cannot be
    except (ValueError, RecursionError):
        tell(f"the compiled kernels {str(path)!r} are damaged: they are compiled again")
        return None
    return kernels if found == asdict(key) else None


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return what kernels are good for, and the kernels.

    Raises:
        ValueError: The file is none of ours, or damaged.
    """
    line, _, kernels = data.removeprefix(_HEAD).partition(b"\n")
    found = json.loads(line) if data.startswith(_HEAD) else None
    if not isinstance(found, dict) or found.pop("sha256", None) != _digest(kernels):
        msg = "it is not a runtime cache, or is damaged"
        raise ValueError(msg)
    return found, kernels


def write_cache(path: Path, key: CacheKey, kernels: bytes, tell: Callable[[str], None]) -> bool:
    """Write kernels to a file, complete or not at all; return whether that was possible.

    Args:
        path: The file.
        key: What they are good for.
        kernels: The library's bytes.
        tell: Told where the disk refuses.
    """
    facts = {**asdict(key), "sha256": _digest(kernels)}
    line = json.dumps(facts, sort_keys=True).encode()
    try:
        atomic_write_bytes(path, _HEAD + line + b"\n" + kernels)
    except StorageError as error:
        where, cause = str(path.parent), error.__cause__
        reason = reason_of(cause) if isinstance(cause, OSError) else error.message
        tell(f"kernels cannot be kept in {where!r}, so every start compiles them again: {reason}")
        return False
    return True


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
