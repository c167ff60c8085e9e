"""Monitoring of a build: its progress, peak device memory, and Ctrl-C."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.posix_modules import posix_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import tensorrt as trt

    from lora_export.ondevice.trt.cuda import Cuda

__all__ = ["Seen", "peak_host_bytes", "watch"]

_KIBIBYTE: Final = 1024
_resource: Any = posix_module("resource")


def peak_host_bytes() -> int:
    """Return the largest resident memory of this process so far; 0 where no system call tells."""
    if _resource is None:
        return 0
    return int(_resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss) * _KIBIBYTE


class Seen:
    """The observations of a build.

    Attributes:
        peak_device_bytes: The most that was taken of the device's memory at any step, all
            processes together.
        stopped: What ended the build early: a Ctrl-C.
    """

    def __init__(self) -> None:
        self.peak_device_bytes = 0
        self.stopped: BaseException | None = None


@contextlib.contextmanager
def watch(
    config: trt.IBuilderConfig, trt: Any, cuda: Cuda | None, tell: Callable[[str], None]
) -> Iterator[Seen]:
    """Follow what is built with `config` inside the block.

    TensorRT calls back at every step. An exception must not pass through it: one that comes up
    there (Ctrl-C) tells TensorRT to stop, and is raised when the block ends.

    Args:
        config: The builder's configuration.
        trt: The library's module.
        cuda: The device whose memory is watched; None where the build needs none.
        tell: Told which phase begins.
    """
    seen = Seen()

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Told by TensorRT of phases within phases."""

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            """Report the phase that begins, the outer ones only."""
            if not parent_phase:
                self._look(f"{phase_name}, {num_steps} steps")

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Return whether to go on."""
            del phase_name, step
            self._look(None)
            return seen.stopped is None

        def phase_finish(self, phase_name: str) -> None:
            """Look at the memory once more."""
            del phase_name
            self._look(None)

        def _look(self, text: str | None) -> None:
            try:
                if cuda is not None:
                    free, total = cuda.memory_bytes()
                    seen.peak_device_bytes = max(seen.peak_device_bytes, total - free)
                if text is not None:
                    tell(text)
            except BaseException as error:  # noqa: BLE001  (raised when the block ends)
                seen.stopped = seen.stopped or error

    monitor = _Monitor()
    config.progress_monitor = monitor
    yield seen
    if seen.stopped is not None:
        raise seen.stopped
