"""The pages of docs/architecture name every module, and their drawing is that of the imports."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tools.architecture import (
    OVERVIEW,
    PAGES,
    ROOT,
    blocks_of,
    folders,
    layers,
    main,
    package_imports,
    pages,
    unlisted,
    without_implied,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path

PACKAGES = [name for name in layers() if (ROOT / "lora_export" / name).is_dir()]
IMPORTS = package_imports()


def _reached(arrows: Mapping[str, AbstractSet[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = arrows[waiting.pop()] - found
        found |= new
        waiting.extend(new)
    return found


def test_the_pages_are_what_the_tool_writes() -> None:
    stale = [path.name for path, text in pages().items() if path.read_text() != text]
    assert not stale, "run: python -m tools.architecture"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_has_a_page_with_all_its_folders(package: str) -> None:
    text = (PAGES / f"{package}.md").read_text()
    listed = [ROOT / name for name in blocks_of(text)]
    assert sorted(listed) == sorted(
        folder for folder in folders(package) if len(list(folder.glob("*.py"))) > 1
    )
    for title in ("What lives here", "What does not belong here", "Where to start reading"):
        assert text.count(f"\n## {title}\n") == 1, title


@pytest.mark.parametrize("package", PACKAGES)
def test_each_module_is_named_on_the_page_of_its_package(package: str) -> None:
    text = (PAGES / f"{package}.md").read_text()
    tracked = subprocess.check_output(
        ["git", "ls-files", f"lora_export/{package}"], cwd=ROOT, text=True
    ).split()
    modules = [path for path in tracked if path.endswith(".py") and "__init__" not in path]
    assert modules
    assert [path for path in modules if f"](../../{path})" not in text] == []


def test_there_is_no_page_of_a_package_that_does_not_exist() -> None:
    assert sorted(path.stem for path in PAGES.glob("*.md")) == sorted(PACKAGES)


def test_every_folder_with_modules_is_on_a_page() -> None:
    assert unlisted() == []


def test_every_arrow_points_down_the_stack() -> None:
    order = layers()
    for importer, imported in IMPORTS.items():
        assert all(order.index(name) > order.index(importer) for name in imported), importer


def test_the_drawing_leads_wherever_the_imports_lead() -> None:
    drawn = {name: set[str]() for name in layers()}
    for line in OVERVIEW.read_text().splitlines():
        if " --> " in line:
            importer, _, others = line.strip().partition(" --> ")
            drawn[importer] = set(others.split(" & "))
    assert sum(map(len, drawn.values())) < sum(map(len, IMPORTS.values()))
    for name in layers():
        assert _reached(drawn, name) == _reached(IMPORTS, name), name


def test_an_arrow_that_follows_from_others_is_left_out() -> None:
    imports = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set[str]()}
    assert without_implied(imports) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}
    beside = {"a": {"b", "c"}, "b": set[str](), "c": set[str]()}
    assert without_implied(beside) == beside


def test_a_page_that_differs_is_found_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "core.md"
    page.write_text("by hand\n<!-- modules of lora_export/core -->\nOLD\n<!-- end -->\nby hand\n")
    monkeypatch.setattr("tools.architecture.PAGES", tmp_path)
    monkeypatch.setattr("tools.architecture.OVERVIEW", page)
    assert main(["--check"]) == 1
    assert "errors.py" not in page.read_text()
    main([])
    text = page.read_text()
    assert "errors.py" in text
    assert "OLD" not in text
    assert text.startswith("by hand\n")
    assert text.endswith("\nby hand\n")
    assert main(["--check"]) == 1, "the other packages are on no page now"
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith("no page lists it: lora_export/ondevice")
    )
