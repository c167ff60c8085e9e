"""Exports of two runs of a fleet, compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_export.core.files import sha256_of_file
from lora_export.core.manifest import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["assert_equal_engines", "assert_equal_exports"]


def artifacts(export_dir: Path) -> dict[str, str]:
    """Return the files of an export but for those that are measured or name the day.

    These are the reports, and the records of engines (`assert_equal_engines`).
    """
    files = read_manifest(export_dir).files
    left_out = ("reports/", "engines/")
    return {name: each for name, each in files.items() if not name.startswith(left_out)}


def assert_equal_engines(first: Path, second: Path, *, plans: bool) -> None:
    """Compare the engines of two exports.

    Args:
        first: An export.
        second: Another.
        plans: Whether the plans are equal too; TensorRT builds larger ones differently each time.
    """
    names = [[path.name for path in sorted((each / "engines").iterdir())]
             for each in (first, second)]  # fmt: skip
    assert names[0] == names[1]
    for name in names[0]:
        mine, theirs = (each / "engines" / name for each in (first, second))
        assert mine.stat().st_size == theirs.stat().st_size or name.endswith(".json")
        if name.endswith(".json"):
            tables = [json.loads(each.read_text()) for each in (mine, theirs)]
            for table in tables:
                del table["seconds"], table["peak_host_bytes"], table["plan"]
            assert tables[0] == tables[1]
        elif plans:
            assert sha256_of_file(mine) == sha256_of_file(theirs)


def assert_equal_exports(first: Path, second: Path, *, places: bool = True) -> None:
    """Compare two exports: files, and everything that the manifests say.

    Args:
        first: An export.
        second: Another.
        places: Whether both name their inputs alike.
    """
    assert artifacts(first) == artifacts(second)
    mine, theirs = (read_manifest(each).model_dump(exclude={"files"}) for each in (first, second))
    if not places:
        for each in (mine["base"], theirs["base"], *mine["adapters"].values(),
                     *theirs["adapters"].values()):  # fmt: skip
            del each["source"]
    assert mine == theirs
    for file in read_manifest(second).files:
        assert sha256_of_file(second / file) == read_manifest(second).files[file]
    reports = [json.loads((each / "reports/parity.json").read_text()) for each in (first, second)]
    assert [each.keys() for each in reports[0]["graphs"].values()] == [
        each.keys() for each in reports[1]["graphs"].values()
    ]
    assert list(reports[0]["graphs"]) == list(reports[1]["graphs"])
