"""Check that the package opens files for reading in one place, ``ondevice/file_opening.py``.

    Path.read_bytes, Path.read_text, Path.resolve       refused
    open, Path.open, os.open                            refused, unless they write

A reader that opens a path by itself waits for ever at a pipe, reads a device without an end, or
fails at a link that leads to itself with an error that nobody translates. `ALLOWED` lists the
modules that read something else than files of users, each with its reason.

Usage: python -m tools.opening
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["main"]

PACKAGE: Final = Path(__file__).parents[1] / "lora_export"
ALLOWED: Final = {
    "ondevice/file_opening.py": "it is the place",
    "ondevice/file_locks.py": "it opens folders, to lock them",
    "ondevice/file_writing.py": "it opens files for writing",
    "core/cgroups.py": "it reads the kernel's files",
    "ondevice/bundle/device_report.py": "it reads the board's name, a file of the kernel",
    "bundle/program.py": "it reads the package's own modules",
    "engines/parser_table.py": "it reads the package's own data",
    "layouts/model_types.py": "it reads the package's own data",
    "verification/product_moments.py": "it reads the package's own data",
    "triton/python_models.py": "it reads the package's own modules",
    "triton/serving/index.py": "it is copied to the server by itself, and refuses pipes itself",
    "triton/serving/tensors.py": "it is copied to the server by itself, and refuses pipes itself",
}
"""Modules that may open files, and why."""

_READERS: Final = frozenset({"read_bytes", "read_text", "resolve"})
_WRITING: Final = frozenset("wax+")
_WRITE_FLAGS: Final = frozenset({"O_WRONLY", "O_RDWR", "O_DIRECTORY"})


def main() -> int:
    """Print each call that opens a file past the one place; return 1 if there is any."""
    found = [
        f"lora_export/{name}:{line}: {what}; use lora_export.ondevice.file_opening"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (name := path.relative_to(PACKAGE).as_posix()) not in ALLOWED
        for line, what in _calls(ast.parse(path.read_text("utf-8")))
    ]
    print("\n".join(found) or "files are opened in one place")
    return 1 if found else 0


def _calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each call that opens a file for reading."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute):
            if called.attr in _READERS and not _is_resource(called.value):
                yield node.lineno, f".{called.attr}()"
            elif called.attr == "open" and _opens_a_path(node, called.value):
                yield node.lineno, f"{ast.unparse(called)}()"
        elif isinstance(called, ast.Name) and called.id == "open" and not _writes(node, at=1):
            yield node.lineno, "open()"


def _opens_a_path(node: ast.Call, opener: ast.expr) -> bool:
    """Whether ``X.open(…)`` reads: `os.open` with flags, or a path's method with a mode."""
    if isinstance(opener, ast.Name) and opener.id == "os":
        return not _WRITE_FLAGS & {each.attr for each in _attributes(node)}
    mode = _mode(node, at=0)
    return mode is not None and not _WRITING & set(mode)


def _writes(node: ast.Call, *, at: int) -> bool:
    return bool(_WRITING & set(_mode(node, at=at) or ""))


def _mode(node: ast.Call, *, at: int) -> str | None:
    """Return the mode of a call, ``r`` where it has no argument, None where it takes another."""
    given = [*node.args[at : at + 1], *(each.value for each in node.keywords if each.arg == "mode")]
    if not given:
        return "r" if not node.args and not node.keywords else None
    mode = given[0]
    return mode.value if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else None


def _attributes(node: ast.AST) -> Iterator[ast.Attribute]:
    return (each for each in ast.walk(node) if isinstance(each, ast.Attribute))


def _is_resource(value: ast.expr) -> bool:
    """Whether a path is the package's own: ``files(…)`` of `importlib.resources`, ``__file__``."""
    text = ast.unparse(value)
    return "files(" in text or "__file__" in text


if __name__ == "__main__":
    sys.exit(main())
