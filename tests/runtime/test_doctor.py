from __future__ import annotations

import importlib.metadata
import sys
import types
from typing import TYPE_CHECKING

import pytest

from lora_export.runtime import doctor

if TYPE_CHECKING:
    from pathlib import Path

Fake = pytest.MonkeyPatch


def package(found: doctor.Diagnosis, module: str) -> doctor.Package:
    return next(each for each in found.packages if each.module == module)


@pytest.fixture
def versions(monkeypatch: Fake) -> dict[str, str]:
    """The installed distributions, as metadata says; empty at first."""
    table: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in table:
            raise importlib.metadata.PackageNotFoundError(name)
        return table[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "_imported", lambda module: (None, None))
    monkeypatch.setattr(doctor, "_is_there", lambda module: module in table.values())
    return table


def test_a_missing_package_says_what_needs_it_and_how_to_get_it(versions: dict[str, str]) -> None:
    found = package(doctor.diagnose(), "torch")
    assert found.installed == {}
    assert "merge-and-build" in found.costs
    assert "pip install -e '.[export]'" in found.get
    assert found.problem is None


def test_two_packages_of_one_module_are_a_problem(
    monkeypatch: Fake, versions: dict[str, str]
) -> None:
    versions.update({"onnxruntime": "1.1", "onnxruntime-gpu": "1.2"})
    monkeypatch.setattr(doctor, "_is_there", lambda module: module == "onnxruntime")
    found = doctor.diagnose()
    assert package(found, "onnxruntime").installed == {
        "onnxruntime": "1.1",
        "onnxruntime-gpu": "1.2",
    }
    (problem,) = found.problems
    assert problem.startswith(
        "onnxruntime: onnxruntime and onnxruntime-gpu install the same module"
    )


def test_metadata_without_a_module_is_a_problem(versions: dict[str, str]) -> None:
    versions["peft"] = "9"
    found = doctor.diagnose()
    assert package(found, "peft").installed == {}
    assert any(problem.startswith("peft: its metadata") for problem in found.problems)


def test_a_module_without_metadata_is_there(monkeypatch: Fake, versions: dict[str, str]) -> None:
    monkeypatch.setattr(doctor, "_is_there", lambda module: module == "tensorrt")
    assert package(doctor.diagnose(), "tensorrt").installed == {"tensorrt": "unknown version"}


def test_old_python_is_told_what_it_needs(monkeypatch: Fake, versions: dict[str, str]) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 12))
    assert package(doctor.diagnose(), "torch").get.endswith("with Python 3.11 or newer")


def test_a_module_that_cannot_be_imported_is_a_problem(monkeypatch: Fake, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text(
        "raise OSError('libnvinfer.so.10: no such file')", "utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.diagnose()
    assert found.tensorrt is None
    assert package(found, "tensorrt").problem == (
        "cannot be imported: OSError: libnvinfer.so.10: no such file"
    )


def test_the_version_of_tensorrt_is_its_own(monkeypatch: Fake, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.3.0'", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    assert doctor.diagnose().tensorrt == "10.3.0"
    monkeypatch.delitem(sys.modules, "tensorrt")


def test_an_onnxruntime_without_content_is_a_problem(monkeypatch: Fake) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    monkeypatch.setattr(doctor, "_is_there", lambda module: module == "onnxruntime")
    found = doctor.diagnose()
    assert found.execution_providers == ()
    assert any("cannot list its providers" in problem for problem in found.problems)


def test_the_cache_is_measured(monkeypatch: Fake, tmp_path: Path) -> None:
    monkeypatch.setenv("LORA_EXPORT_CACHE", str(tmp_path / "cache"))
    empty = doctor.diagnose().cache
    assert empty is not None
    assert (empty.path, empty.graphs, empty.bytes) == (str(tmp_path / "cache"), 0, 0)
    assert (empty.free_bytes or 0) > 0
    for key in ("one", "two"):
        folder = tmp_path / "cache" / "graphs" / key
        folder.mkdir(parents=True)
        (folder / "graph.onnx").write_bytes(b"12345")
    full = doctor.diagnose().cache
    assert full is not None
    assert (full.graphs, full.bytes) == (2, 10)
