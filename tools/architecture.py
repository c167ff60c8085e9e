"""Write the parts of docs/architecture that follow from the code: module tables and import arrows.

A page has blocks between two comments, `<!-- modules of lora_export/graph/trace -->` and
`<!-- end -->`; what stands between them is written here, everything else by hand:

- `modules of FOLDER`: the modules of a folder, each with the first line of its docstring;
- `packages`: the packages in the order of the stack that pyproject.toml declares;
- `imports`: an arrow for each package that another one imports, without the arrows that follow from
  the others.

Usage: python -m tools.architecture [--check]

With --check nothing is written, and the exit code is 1 where a page differs from the code.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grimp
import tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = "lora_export"
OVERVIEW: Final = ROOT / "docs" / "architecture.md"
PAGES: Final = ROOT / "docs" / "architecture"

_BLOCK: Final = re.compile(r"<!-- (?P<what>[\w /]+) -->\n.*?<!-- end -->", re.DOTALL)
_MODULES_OF: Final = "modules of "


def layers() -> tuple[str, ...]:
    """Return the packages of the stack, the highest first, as import-linter reads them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    stack = next(each for each in contracts if each["id"] == "layers")["layers"]
    return tuple(name.strip() for layer in stack for name in layer.split("|"))


def package_imports() -> dict[str, frozenset[str]]:
    """Return for each package (or module at the top) those that its modules import directly."""
    graph = grimp.build_graph(PACKAGE)
    found: dict[str, set[str]] = {name: set() for name in layers()}
    for module in graph.modules:
        importer = _top_of(module)
        if importer in found:
            imported = map(_top_of, graph.find_modules_directly_imported_by(module))
            found[importer].update(name for name in imported if name in found)
    return {name: frozenset(others - {name}) for name, others in found.items()}


def without_implied(imports: Mapping[str, AbstractSet[str]]) -> dict[str, frozenset[str]]:
    """Return `imports` (which has no circle) without the arrows that a longer way implies."""
    reached: dict[str, frozenset[str]] = {}

    def below(name: str) -> frozenset[str]:
        if name not in reached:
            reached[name] = frozenset(imports[name]) | frozenset().union(*map(below, imports[name]))
        return reached[name]

    return {
        name: frozenset(others) - frozenset().union(*map(below, others))
        for name, others in imports.items()
    }


def summary(path: Path) -> str:
    """Return the first line of a module's docstring, as Markdown for a cell of a table."""
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    if not docstring:
        msg = f"{path.relative_to(ROOT)} has no docstring"
        raise ValueError(msg)
    return docstring.splitlines()[0].replace("``", "`").replace("|", "\\|")


def folders(package: str) -> tuple[Path, ...]:
    """Return the folder of a package of the stack and the packages below it, sorted."""
    top = ROOT / PACKAGE / package
    return tuple(sorted(init.parent for init in top.rglob("__init__.py")))


def pages() -> dict[Path, str]:
    """Return every page of the architecture, with its blocks written anew."""
    imports = package_imports()
    return {path: _written_anew(path, imports) for path in (OVERVIEW, *sorted(PAGES.glob("*.md")))}


def blocks_of(text: str) -> tuple[str, ...]:
    """Return the folders whose modules a page lists, in its order."""
    named = (found["what"] for found in _BLOCK.finditer(text))
    return tuple(name.removeprefix(_MODULES_OF) for name in named if name.startswith(_MODULES_OF))


def unlisted() -> list[str]:
    """Return the folders with modules that no page lists, as paths from the root."""
    listed = {name for page in PAGES.glob("*.md") for name in blocks_of(page.read_text())}
    packages = [name for name in layers() if (ROOT / PACKAGE / name).is_dir()]
    existing = [
        folder.relative_to(ROOT).as_posix()
        for package in packages
        for folder in folders(package)
        if len(list(folder.glob("*.py"))) > 1
    ]
    return [folder for folder in existing if folder not in listed]


def _written_anew(page: Path, imports: Mapping[str, AbstractSet[str]]) -> str:
    return _BLOCK.sub(lambda found: _block(found["what"], page, imports), page.read_text())


def _top_of(module: str) -> str:
    """Return the part of a module's name below the package itself: ``graph``, ``cli``."""
    return module.partition(".")[2].partition(".")[0]


def _block(what: str, page: Path, imports: Mapping[str, AbstractSet[str]]) -> str:
    if what.startswith(_MODULES_OF):
        body = _modules_table(ROOT / what.removeprefix(_MODULES_OF), page)
    elif what == "packages":
        body = _packages_table(imports)
    elif what == "imports":
        body = _drawing(without_implied(imports))
    else:
        msg = f"{page} has an unknown block {what!r}"
        raise ValueError(msg)
    return f"<!-- {what} -->\n\n{body}\n\n<!-- end -->"


def _modules_table(folder: Path, page: Path) -> str:
    paths = sorted(each for each in folder.glob("*.py") if each.name != "__init__.py")
    if (folder / "__init__.py").read_text().count("\n") > 1:  # one that defines something
        paths.insert(0, folder / "__init__.py")
    rows = [
        f"| [`{path.name}`]({os.path.relpath(path, page.parent)}) | {summary(path)} |"
        for path in paths
    ]
    return "\n".join(["| module | what lives here |", "|---|---|", *rows])


def _packages_table(imports: Mapping[str, AbstractSet[str]]) -> str:
    order = layers()
    rows = []
    for name in order:
        folder = ROOT / PACKAGE / name
        is_package = folder.is_dir()
        first = folder / "__init__.py" if is_package else folder.with_suffix(".py")
        shown = f"[`{name}`](architecture/{name}.md)" if is_package else f"`{name}.py`"
        below = ", ".join(other for other in order if other in imports[name]) or "nothing"
        rows.append(f"| {shown} | {summary(first)} | {below} |")
    return "\n".join(["| package | what it holds | imports |", "|---|---|---|", *rows])


def _drawing(arrows: Mapping[str, AbstractSet[str]]) -> str:
    order = layers()
    lines = [
        f"    {name} --> {' & '.join(other for other in order if other in arrows[name])}"
        for name in order
        if arrows[name]
    ]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or compare them with the code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; 1 where a page differs"
    )
    check = parser.parse_args(arguments).check
    differing = {path: text for path, text in pages().items() if path.read_text() != text}
    for path, text in differing.items():
        if not check:
            path.write_text(text)
        print(f"{'differs' if check else 'written'}: {path}")
    missing = unlisted()
    for folder in missing:
        package = folder.split("/")[1]
        print(f"no page lists it: {folder}; add its block to docs/architecture/{package}.md")
    return int(bool(missing) or (check and bool(differing)))


if __name__ == "__main__":
    sys.exit(main())
