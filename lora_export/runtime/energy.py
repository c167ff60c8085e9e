"""The energy that a run takes, from NVML's counter or a Jetson's tegrastats.

Counters tick a few times in a second, so that a single run is not seen: a subject is run again and
again for seconds, alone, and its share is what was counted over the number of runs. It is the
energy of the whole device, idle power included.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Final, Protocol

from lora_export.runtime.nvml import nvml_devices

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["Meter", "energy_of_a_run_mj", "find_meter", "input_power_mw"]

_SECONDS: Final = 2.0
_INTERVAL_MS: Final = 100
_PATIENCE_S: Final = 2.0
_RAILS: Final = ("VDD_IN", "POM_5V_IN", "VDD_GPU_SOC")
"""The rail of the whole board, by module: Orin and Xavier NX, Nano and TX2, else of the chip."""


class Meter(Protocol):
    """Counts energy between two moments."""

    def energy_mj(self) -> float | None:
        """Return the energy counted so far; None if the counter stopped."""


class _NvmlMeter(AbstractContextManager["_NvmlMeter"]):
    def __init__(self) -> None:
        self._stack = ExitStack()
        self._devices = self._stack.enter_context(nvml_devices())

    def energy_mj(self) -> float | None:
        """Return the energy of all GPUs."""
        counts = [device.energy_mj() for device in self._devices]
        known = [each for each in counts if each is not None]
        return float(sum(known)) if known else None

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class _TegraMeter(AbstractContextManager["_TegraMeter"]):
    """Integrates the power that ``tegrastats`` prints, as its lines come in.

    Args:
        program: Its path.
    """

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603  (a fixed name, found on the path)
            [program, "--interval", str(_INTERVAL_MS)], stdout=subprocess.PIPE, text=True
        )
        self._sum_mj: float | None = None
        self._first = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def energy_mj(self) -> float | None:
        """Return the energy counted since the first line; None if no line has it."""
        self._first.wait(_PATIENCE_S)
        return self._sum_mj

    def _read(self) -> None:
        before: tuple[float, float] | None = None
        for line in self._process.stdout or ():
            power_mw, now = input_power_mw(line), time.monotonic()
            if power_mw is None:
                continue
            if before is None:
                self._sum_mj = 0.0
                self._first.set()
            else:
                earlier, earlier_mw = before
                self._sum_mj = (self._sum_mj or 0.0) + (power_mw + earlier_mw) / 2 * (now - earlier)
            before = (now, power_mw)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


def input_power_mw(line: str) -> float | None:
    """Return the power of the board that a line of ``tegrastats`` tells, in milliwatts.

    >>> input_power_mw("RAM 2/7 GR3D_FREQ 0% VDD_IN 4060mW/4102mW VDD_SOC 1100mW/1100mW")
    4060.0
    >>> input_power_mw("RAM 2/7 POM_5V_IN 2532/2610 POM_5V_GPU 120/120")
    2532.0
    """
    for rail in _RAILS:
        if found := re.search(rf"\b{rail} (\d+)(?:mW)?/", line):
            return float(found[1])
    return None


def find_meter(stack: ExitStack) -> Meter | None:
    """Return a meter that counts until `stack` closes; None where the machine has none."""
    nvml = stack.enter_context(_NvmlMeter())
    if nvml.energy_mj() is not None:
        return nvml
    program = shutil.which("tegrastats")
    if program is None:
        return None
    tegra = stack.enter_context(_TegraMeter(program))
    return tegra if tegra.energy_mj() is not None else None


def energy_of_a_run_mj(
    meter: Meter, run: Callable[[], Any], *, seconds: float = _SECONDS
) -> float | None:
    """Return the energy of one run: of as many as fit into `seconds`, over their number."""
    before, runs = meter.energy_mj(), 0
    end = time.perf_counter() + seconds
    while runs == 0 or time.perf_counter() < end:
        run()
        runs += 1
    after = meter.energy_mj()
    return None if before is None or after is None else (after - before) / runs
