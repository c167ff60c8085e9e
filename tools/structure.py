"""Check the sizes of files and functions, their names, first lines, and the places of tests.

    a file                  at most 400 lines
    a function              at most 60 lines, its docstring and its signature not counted
    equal file names        at most 12 in the package, `cli` and `commands` counted as one
    a folder of tests       named as the package or module that it tests
    a docstring             begins with a verb or a noun, not with What, Who, Whose, How, …

Sizes and docstrings are checked in the package, the tools, the tests, the benchmarks and the
recipes. The docstring of a test may be a sentence about behaviour.

Usage: python -m tools.structure

Imports are checked by import-linter; its contracts are in ``pyproject.toml``.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["main"]

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "lora_export"
MOST_FILE_LINES: Final = 400
MOST_FUNCTION_LINES: Final = 60
MOST_EQUAL_NAMES: Final = 12
CHECKED: Final = (PACKAGE, *(ROOT / name for name in ("tools", "tests", "bench", "recipes")))
_NO_MIRROR: Final = {"data", "docker", "end_to_end", "fakes", "helpers", "tools"}
_NAMELESS: Final = {"__init__", "__main__", "conftest"}
_RIDDLES: Final = {"What", "Who", "Whose", "How", "Which", "Where", "When"}
"""First words of docstrings that avoid the noun or the verb."""


def main() -> int:
    """Print what is too long or named twice; return 1 if anything is."""
    found = [*_too_long(), *_equal_names(), *_misplaced_tests(), *_riddles()]
    print("\n".join(found) or "sizes and names: as they should be")
    return 1 if found else 0


def _too_long() -> Iterator[str]:
    for path in _files(*CHECKED):
        source, name = path.read_text("utf-8"), path.relative_to(ROOT).as_posix()
        lines = source.count("\n")
        if lines > MOST_FILE_LINES:
            yield f"{name}: {lines} lines; at most {MOST_FILE_LINES}"
        for function, count in _functions(ast.parse(source)):
            if count > MOST_FUNCTION_LINES:
                yield f"{name}: {function} has {count} lines; at most {MOST_FUNCTION_LINES}"


def _functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each function and the lines of its body, without the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1


def _equal_names() -> Iterator[str]:
    """Yield the file names that several packages have, if they are too many."""
    folders = defaultdict(set)
    for path in _files(PACKAGE):
        package = path.relative_to(PACKAGE).parent.as_posix()
        folders[path.stem].add("commands" if package == "cli" else package)
    twice = {name: sorted(in_) for name, in_ in folders.items() if len(in_) > 1}
    twice = {name: in_ for name, in_ in twice.items() if name not in _NAMELESS}
    if len(twice) > MOST_EQUAL_NAMES:
        yield f"{len(twice)} file names occur more than once; at most {MOST_EQUAL_NAMES}:"
        yield from (f"  {name}: {', '.join(in_)}" for name, in_ in sorted(twice.items()))


def _riddles() -> Iterator[str]:
    """Yield the docstrings that begin with a question word."""
    for path in _files(*CHECKED):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                if line.partition(" ")[0].rstrip(",:") in _RIDDLES:
                    name = path.relative_to(ROOT).as_posix()
                    yield f"{name}: a docstring begins with a question word: {line}"


def _misplaced_tests() -> Iterator[str]:
    """Yield the folders of tests that no package and no module has the name of."""
    tests = ROOT / "tests"
    for folder in sorted({path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}):
        if folder.parts and folder.parts[0] not in _NO_MIRROR:
            tested = PACKAGE / folder
            if not tested.is_dir() and not tested.with_suffix(".py").is_file():
                yield f"tests/{folder.as_posix()}: no such package or module in {PACKAGE.name}/"


def _files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.rglob("*.py"))


if __name__ == "__main__":
    sys.exit(main())
