"""Energy: NVML's counter through a library of our own, tegrastats as a program that prints."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from lora_export.runtime import energy
from lora_export.runtime.energy import energy_of_a_run_mj, find_meter, input_power_mw
from lora_export.runtime.nvml import nvml_devices
from tests.fakes.nvml import FakeNvml

if TYPE_CHECKING:
    from pathlib import Path

ORIN = (
    "11-25-2026 10:00:00 RAM 3046/7620MB (lfb 4x4MB) SWAP 0/3810MB CPU [5%@729,off] "
    "GR3D_FREQ 0%@305 cpu@48.5C VDD_IN 4060mW/4102mW VDD_CPU_GPU_CV 480mW/480mW"
)
NANO = "RAM 1216/3964MB SWAP 0/1982MB GR3D_FREQ 0% POM_5V_IN 2532/2610 POM_5V_GPU 120/130"


@pytest.fixture
def fake(monkeypatch):
    library = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_clocks_are_those_that_the_driver_tells(fake):
    with nvml_devices() as devices:
        assert [each.clocks_mhz() for each in devices] == [
            {"graphics": 1000, "memory": 1002}, {"graphics": 2000, "memory": 2002},
        ]  # fmt: skip
        assert devices[0].used_by_this_process_bytes() is None  # this library has no such function
    assert fake.ended == 1


def test_the_energy_of_a_run_is_what_was_counted_over_the_runs(fake):
    runs: list[int] = []
    with ExitStack() as stack:
        meter = find_meter(stack)
        assert meter is not None
        found = energy_of_a_run_mj(meter, lambda: runs.append(1), seconds=0.01)
        assert found == pytest.approx(500 / len(runs))
    assert fake.ended == 1


def test_without_a_driver_there_are_no_devices(no_driver):
    with nvml_devices() as devices:
        assert devices == []


def test_without_driver_and_tegrastats_there_is_no_meter(no_driver, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with ExitStack() as stack:
        assert find_meter(stack) is None


@pytest.mark.parametrize(("line", "power"), [(ORIN, 4060.0), (NANO, 2532.0), ("RAM 1/2MB", None)])
def test_the_power_of_the_board_is_read(line, power):
    assert input_power_mw(line) == power


def program(folder: Path, script: str) -> None:
    path = folder / "tegrastats"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_tegrastats_is_integrated_over_time(no_driver, monkeypatch, tmp_path):
    """4060 mW for about 0.3 s are about 1200 mJ."""
    program(tmp_path, f'while true; do echo "{ORIN}"; /bin/sleep 0.02; done')
    monkeypatch.setenv("PATH", str(tmp_path))
    with ExitStack() as stack:
        meter = find_meter(stack)
        assert meter is not None
        before, start = meter.energy_mj(), time.monotonic()
        time.sleep(0.3)
        after, passed = meter.energy_mj(), time.monotonic() - start
        assert before is not None
        assert after is not None
        assert 0.5 * passed * 4060 < after - before < 1.5 * passed * 4060


def test_a_tegrastats_that_tells_no_power_is_no_meter(no_driver, monkeypatch, tmp_path):
    program(tmp_path, 'echo "RAM 1/2MB"')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(energy, "_PATIENCE_S", 0.05)
    with ExitStack() as stack:
        assert find_meter(stack) is None
