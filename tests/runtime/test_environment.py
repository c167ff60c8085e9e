"""The environment of a figure: what is told, and what must be alike to compare."""

from __future__ import annotations

import json
import platform
from importlib import metadata

from lora_export.core.reports.machine_report import GpuRow
from lora_export.core.reports.report_model import as_json
from lora_export.runtime import environment
from lora_export.runtime.environment import describe_environment, machine_class


def test_the_machine_and_the_versions_are_told_as_json_values():
    found = as_json(describe_environment(threads=3))
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]["architecture"] == platform.machine()
    assert found["cpu"]["usable"] >= 1
    assert found["packages"]["onnxruntime"] == metadata.version("onnxruntime")
    assert found["python"] == platform.python_version()
    assert found["threads"] == 3
    assert len(found["load_average"]) == 3


def test_nothing_names_the_host():
    assert platform.node() not in json.dumps(as_json(describe_environment()))


def test_the_class_of_a_machine_is_its_hardware_and_its_threads():
    here = describe_environment()

    def class_with(**changes):
        return machine_class(here.model_copy(update=changes))

    later = class_with(load_average=[9.0, 9.0, 9.0], packages={"onnxruntime": "9"})
    assert machine_class(here) == later
    assert machine_class(here) != class_with(threads=1)
    assert class_with(gpus=[GpuRow(name="NVIDIA Other", clocks_mhz=None)]).gpus == ["NVIDIA Other"]
    assert machine_class(here) != class_with(cpu=here.cpu.model_copy(update={"model": "Other"}))


def test_an_arm_processor_is_told_by_its_numbers(tmp_path, monkeypatch):
    """The kernel has no name for one: two kinds must not be taken for the same class."""

    def model(*parts: str) -> str | None:
        text = "".join(
            f"processor\t: {at}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
            for at, part in enumerate(parts)
        )
        (tmp_path / "cpuinfo").write_text(text)
        return environment.cpu_model()

    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert model("0xd42") == "implementer 0x41 part 0xd42"
    assert model("0xd42", "0xd0b", "0xd42") == (
        "implementer 0x41 part 0xd0b, implementer 0x41 part 0xd42"
    )
    assert model() is None
