"""TensorRT's timing cache: how long kernels took in earlier builds for a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.ondevice.device_files import atomic_write_bytes, read_errors
from lora_export.ondevice.file_opening import read_file

if TYPE_CHECKING:
    from pathlib import Path

    import tensorrt as trt

__all__ = ["keep_timing_cache", "stored_timings", "use_timing_cache"]

_LIMIT_BYTES: Final = 1 << 30


def stored_timings(path: Path) -> bytes:
    """Return the contents of a timing cache; nothing where there is none.

    Raises:
        DeviceError: It is not a regular file, is too large, or cannot be read.
    """
    with read_errors(f"the timing cache {str(path)!r}"):
        try:
            return read_file(path, _LIMIT_BYTES)
        except FileNotFoundError:
            return b""


def use_timing_cache(config: trt.IBuilderConfig, path: Path) -> bool:
    """Give the builder the timings of earlier builds; return whether there were any.

    A cache that is damaged or of another device is left out: it is made anew.

    Raises:
        DeviceError: See `stored_timings`.
    """
    stored = stored_timings(path)
    for data in (stored, b"") if stored else (b"",):
        try:
            cache = config.create_timing_cache(data)
        except (RuntimeError, TypeError, ValueError):
            continue
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return bool(data)
    return False


def keep_timing_cache(config: trt.IBuilderConfig, path: Path) -> None:
    """Write the timings of all builds so far.

    Raises:
        StorageError: The disk refuses.
    """
    cache = config.get_timing_cache()
    if cache is not None:
        atomic_write_bytes(path, memoryview(cache.serialize()))
