"""Nothing installs this package by its name from an index: until it is published, the name is free.

Whoever registers the name first would be installed by such a command. Hints, documents, images and
generated files show what works from a clone: ``pip install -e '.[cpu]'``.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import tomllib

from lora_export.core.installation import install_command
from lora_export.ondevice.trt.libraries import LIBRARIES

ROOT = Path(__file__).resolve().parents[1]
_NAME = r"lora[-_.]+export"
_QUOTES = "'\"`*"
_VERSION = r"(?:[=<>!~@]=?=?\s*[\w.*]+)?"

_TOOL = re.compile(
    r"\b(?:pip[\d.]*|pipx|uvx?|poetry|pdm|conda|mamba|easy_install|hatch)\b(?P<rest>.*)",
    re.IGNORECASE,
)
"""What installs packages, and the rest of its line."""

_TARGET = re.compile(
    rf"(?<![\w./\\:-]){_NAME}(?:\[[\w, -]*\])?{_VERSION}(?=$|[\s{_QUOTES},.;:)\]])", re.IGNORECASE
)
"""The name as a requirement: not a path, a module, a file or an image."""

_WITH_EXTRA = re.compile(
    rf"(?<![\w./\\]){_NAME}\s?\[(?!\.|OPTIONS\])[a-z][\w, -]*\]", re.IGNORECASE
)
_REQUIREMENT_LINE = re.compile(
    rf"^\s*-?\s*[{_QUOTES}]?{_NAME}(?:\[[\w, -]*\])?\s*(?:[=~<>!]=|@ )", re.IGNORECASE
)

_VERB = re.compile(r"\b(?:install|download|wheel|add|run|inject|upgrade|tool|x|from)\b|--with")
_END = re.compile(r"\s(?:&&|\|\||;|\||#)\s|[.;]\s|: (?!pip)")
"""What ends a command within a line."""


def finds(line: str) -> bool:
    """Return whether a line installs the package by name."""
    if _WITH_EXTRA.search(line) or _REQUIREMENT_LINE.search(line):
        return True
    for tool in _TOOL.finditer(line):
        command = _END.split(tool["rest"], maxsplit=1)[0]
        verb = _VERB.search(command)
        runs = tool[0].lower().startswith(("uvx", "pipx"))
        if (verb or runs) and _TARGET.search(command[verb.end() if verb else 0 :]):
            return True
    return False


def _joined(text: str) -> list[str]:
    """Return the lines of a text, continued ones and the strings that Python joins in one."""
    text = re.sub(r"\\\r?\n\s*", " ", text)
    text = re.sub(r"[\"']\s*,?\s*\n\s*f?[\"']", " ", text)  # lists of arguments, joined strings
    return text.splitlines()


def _tracked() -> list[Path]:
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    own = Path(__file__).resolve()
    paths = (ROOT / name for name in listed.split("\0") if name)
    return [path for path in paths if path.is_file() and path != own]


def test_no_file_of_the_repository_installs_the_package_by_name() -> None:
    found = []
    for path in _tracked():
        data = path.read_bytes()
        if b"\0" in data or not re.search(_NAME.encode(), data, re.IGNORECASE):
            continue
        lines = _joined(data.decode("utf-8", "replace"))
        found += [f"{path.relative_to(ROOT)}: {line.strip()}" for line in lines if finds(line)]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "pip install lora-export",
        "pip3 install --upgrade LoRA_Export",
        "Install lora-export[cpu], or choose --to peft.",
        "python -m pip install 'lora-export[export,cpu]'",
        'subprocess.run([sys.executable, "-m", "pip", "install", "lora-export"])',
        "RUN pip install --no-cache-dir lora-export==0.2",
        "uv pip install lora.export",
        "uv add lora-export",
        "uvx lora-export doctor",
        "pipx run lora-export doctor",
        "pipx install lora-export",
        "uv tool install lora-export",
        "lora-export==0.1.0",
        "  - lora-export>=0.2",
        "pip install -c constraints.txt lora-export && lora-export doctor",
        "install it: pip install lora-export.",
    ],
)
def test_a_command_that_installs_it_by_name_is_found(line: str) -> None:
    assert finds(line)


@pytest.mark.parametrize(
    "line",
    [
        install_command("cpu"),
        install_command(),
        "pip install -e '.[cpu]'",
        "pip install /src/lora-export",
        "pip install 'PATH_OF_CLONE/lora-export[trt]'",
        "/opt/lora-export/bin/pip install -c /src/constraints.txt /src",
        "lora-export merge-and-build recipe.yaml",
        "pip install onnxruntime && lora-export doctor",
        "3.0.0 is too new; lora-export needs a version below 3: pip install 'torch>=2.10,<3'",
        "The package needs NumPy below 2, so it is not installed beside lora-export: its wheel",
    ],
)
def test_what_works_from_a_clone_is_not_found(line: str) -> None:
    assert not finds(line)


def test_a_hint_names_an_extra_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "lora_export").rglob("*.py"))
    named = set(re.findall(r"install_command\(['\"](\w+)['\"]\)", sources))
    assert {"export", "cpu", "tensorrt"} <= named <= set(extras)
    requirements = [row.partition(";")[0].strip() for rows in extras.values() for row in rows]
    for hinted in re.findall(r"pip install '(gguf>=[\d.]+)'", sources):
        assert hinted in requirements
    for library, extra in {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}.items():
        for requirement in extras[extra]:
            command = f"pip install '{requirement.partition(';')[0].strip()}'"
            assert command in LIBRARIES[library].install
