"""The table of versions: one with pyproject.toml; what is outside of it is refused in one line."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess

import pytest

from lora_export.core import supported_versions as versions
from lora_export.core.errors import MissingRuntimeError
from lora_export.core.torch_file import read_torch_file
from lora_export.runtime.ort import require_onnxruntime
from lora_export.runtime.reference import require_reference
from tests.cli.running import REPOSITORY, Result, call, python
from tools.lowest import constraints, lowest_versions


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return a table of versions that libraries say they have."""
    table: dict[str, str] = {}
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: table.get(name) or real(name))
    return table


def test_table_and_pyproject_declare_the_same() -> None:
    declared = lowest_versions()
    apart = {"tritonclient"}  # its schema is the same in every version; see pyproject.toml
    lowest = {name: known.lowest for name, known in versions.SUPPORTED.items()}
    lowest.pop("onnxruntime-gpu")
    assert lowest == {name: bound for name, bound in declared.items() if name not in apart}
    assert lowest["onnxruntime"] == versions.SUPPORTED["onnxruntime-gpu"].lowest


def test_what_is_developed_with_is_in_the_table(installed: dict[str, str]) -> None:
    assert versions.unsupported(versions.SUPPORTED) == []


@pytest.mark.parametrize(
    ("version", "right"),
    [("5.4.0", False), ("5.11.9", False), ("4.57.6", False), ("5.12.0", True), ("5.12", True),
     ("5.12.0.dev0", True), ("6.0", True), ("5.100.0", True)],
)  # fmt: skip
def test_versions_are_compared_as_numbers(version: str, right: bool) -> None:
    assert (versions.problem_of("transformers", version) is None) is right


def test_a_version_known_to_break_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"torch": versions.Range("2.10", "2.14", broken_from="3")}
    monkeypatch.setattr(versions, "SUPPORTED", table)
    assert versions.problem_of("torch", "2.99+cpu") is None
    assert versions.problem_of("torch", "3.0.0") == (
        "3.0.0 is too new; lora-export needs a version below 3: pip install 'torch>=2.10,<3'"
    )


@pytest.mark.parametrize(
    ("library", "version", "use"),
    [
        ("transformers", "5.4.0", require_reference),
        ("peft", "0.18.1", require_reference),
        ("onnxruntime", "1.19.2", require_onnxruntime),
        ("torch", "2.9.1", lambda: read_torch_file(None)),  # type: ignore[arg-type]
    ],
)
def test_old_library_is_refused_before_it_is_used(installed, library, version, use) -> None:
    installed[library] = version
    with pytest.raises(MissingRuntimeError) as caught:
        use()
    assert str(caught.value) == f"{library} {versions.problem_of(library, version)}"


def test_build_with_an_old_library_is_one_line_and_exit_7(installed, tiny, tmp_path, capsys):
    installed["transformers"] = "5.4.0"
    base = tiny.base("bert", "text-classification")
    found: Result = call(capsys, "export", "--base", base, "--out", tmp_path / "out",
                         "--adapter", tiny.adapter(base), "--opset", "25", "--quiet")  # fmt: skip
    assert found.code == 7
    assert found.err == (
        "error: transformers 5.4.0 is too old; lora-export needs 5.12 or newer: "
        "pip install 'transformers>=5.12'\n"
    )
    assert not (tmp_path / "out").exists()


def test_doctor_lists_what_is_outside(installed: dict[str, str], capsys) -> None:
    installed.update({"transformers": "5.4.0", "click": "8.0.1"})
    found = call(capsys, "doctor", "--json").document
    assert found["problems"] == [
        f"transformers: {versions.problem_of('transformers', '5.4.0')}",
        f"click {versions.problem_of('click', '8.0.1')}",
    ]


def test_doctor_lists_what_is_newer_than_was_tried(installed: dict[str, str], capsys) -> None:
    assert "newer than was tried" not in call(capsys, "doctor").out
    installed["torch"] = "99.1.0+cpu"
    found = call(capsys, "doctor")
    newest = versions.SUPPORTED["torch"].newest
    assert f"newer than was tried\n  torch 99.1.0+cpu, tried up to {newest}\n" in found.out


def test_unforeseen_failure_under_an_old_library_names_it() -> None:
    code = (
        "import importlib.metadata as m, click, sys; real = m.version; "
        "m.version = lambda name: '1.0' if name == 'pydantic' else real(name); "
        "import lora_export.cli as c; c.cli.main = lambda *a, **k: 1 / 0; sys.exit(c.run([]))"
    )
    found = python("-c", code)
    assert found.code == 7
    assert found.err == f"error: pydantic {versions.problem_of('pydantic', '1.0')}\n"


def test_constraints_hold_pip_to_the_lowest() -> None:
    lines = list(constraints())
    assert "transformers==5.12" in lines
    assert "torch==2.10" in lines
    assert any(line.startswith("pytest==") for line in lines)
    pinned = list(constraints(torch="pinned"))
    assert not any(line == "torch==2.10" for line in pinned)
    assert any(line.startswith("torch==2.13.0") for line in pinned)


def test_what_make_runs_with_them_is_there() -> None:
    printed = subprocess.run(
        ["make", "--dry-run", "--always-make", "test-lowest"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    paths = re.findall(r"\btests/[\w/.]+", printed)
    assert len(paths) >= 5
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
