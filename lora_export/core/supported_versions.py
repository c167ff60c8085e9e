"""Versions of the libraries that the package runs with: one table.

``pyproject.toml`` declares the same bounds (a test compares them), and ``make test-lowest`` runs
with the lowest. ``doctor`` lists what is outside of them; code that is about to import such a
library refuses it in one line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import MissingRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CORE",
    "SUPPORTED",
    "Range",
    "installed_version",
    "problem_of",
    "require_supported",
    "requirement_of",
    "unsupported",
    "untried",
]


@dataclass(frozen=True)
class Range:
    """The versions of one library.

    Attributes:
        lowest: The lowest that the end-to-end tests pass with; lower ones are refused.
        newest: The newest that they were run with; newer ones are not refused.
        broken_from: The first that is known to break, which is refused with all that follow.
    """

    lowest: str
    newest: str
    broken_from: str | None = None


SUPPORTED: Final[Mapping[str, Range]] = {
    "click": Range("8.1", "8.5.1"),
    "huggingface_hub": Range("1.5", "2.4.0"),
    "ml_dtypes": Range("0.5", "0.6.0"),
    "numpy": Range("2.0", "2.4.6"),
    "onnx": Range("1.19", "1.23.2"),
    "onnx-ir": Range("0.2", "1.1.0"),
    "pydantic": Range("2.7", "2.14.4"),
    "pyyaml": Range("6.0.1", "6.0.4"),
    "rich": Range("13.7", "15.0.0"),
    "accelerate": Range("1.10", "1.15.0"),
    "onnxscript": Range("0.6", "0.7.2"),
    "peft": Range("0.19", "0.21.2"),
    "torch": Range("2.10", "2.14.1"),
    "transformers": Range("5.12", "5.24.0"),
    "onnxruntime": Range("1.20", "1.32.0"),
    "onnxruntime-gpu": Range("1.20", "1.32.0"),
}
"""By the name under which a library is installed."""

CORE: Final = (
    "click", "huggingface_hub", "ml_dtypes", "numpy", "onnx", "onnx-ir", "pydantic", "pyyaml",
    "rich",
)  # fmt: skip
"""Those that every command may need."""


def problem_of(distribution: str, version: str) -> str | None:
    """Return what is wrong with an installed version, and the command that helps, or None.

    >>> problem_of("transformers", "5.4.0")
    "5.4.0 is too old; lora-export needs 5.12 or newer: pip install 'transformers>=5.12'"
    >>> problem_of("transformers", "5.12.0") is None
    True
    """
    known = SUPPORTED.get(distribution)
    if known is None:
        return None
    command = f"pip install '{requirement_of(distribution)}'"
    if _numbers(version) < _numbers(known.lowest):
        return f"{version} is too old; lora-export needs {known.lowest} or newer: {command}"
    if known.broken_from is not None and _numbers(version) >= _numbers(known.broken_from):
        needed = f"lora-export needs a version below {known.broken_from}"
        return f"{version} is too new; {needed}: {command}"
    return None


def requirement_of(distribution: str) -> str:
    """Return the versions of a library as ``pyproject.toml`` writes them.

    >>> requirement_of("torch")
    'torch>=2.10'
    """
    known = SUPPORTED[distribution]
    below = "" if known.broken_from is None else f",<{known.broken_from}"
    return f"{distribution}>={known.lowest}{below}"


def installed_version(distribution: str) -> str | None:
    """Return the version of a library by its metadata, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def unsupported(distributions: Iterable[str]) -> list[str]:
    """Return the problems with the versions of those libraries that are installed."""
    versions = {each: installed_version(each) for each in distributions}
    found = {each: problem_of(each, version) for each, version in versions.items() if version}
    return [f"{each} {problem}" for each, problem in found.items() if problem]


def untried(distributions: Iterable[str] = tuple(SUPPORTED)) -> list[str]:
    """Return those of `distributions` that are installed in a newer version than was tried."""
    versions = ((each, installed_version(each)) for each in distributions)
    return [
        f"{each} {version}, tried up to {SUPPORTED[each].newest}"
        for each, version in versions
        if version and _numbers(version) > _numbers(SUPPORTED[each].newest)
    ]


def require_supported(*distributions: str) -> None:
    """Check the versions of libraries that are about to be imported.

    Args:
        distributions: Names of the table; one that is not installed is passed over.

    Raises:
        MissingRuntimeError: One of them is too old, or too new.
    """
    problems = unsupported(distributions)
    if problems:
        raise MissingRuntimeError(problems[0], items=problems[1:])


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with, the zeros at the end left out.

    >>> _numbers("2.13.0+cpu"), _numbers("2.0"), _numbers("5.13.0.dev0")
    ((2, 13), (2,), (5, 13))
    """
    leading = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in leading[0].split(".")] if leading else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
