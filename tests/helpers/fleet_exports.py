"""Exports of two runs of a fleet, compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_export.core.files import sha256_of_file
from lora_export.core.manifest import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["assert_equal_exports"]


def artifacts(export_dir: Path) -> dict[str, str]:
    """Return the files of an export but for the reports, which name the day."""
    files = read_manifest(export_dir).files
    return {name: each for name, each in files.items() if not name.startswith("reports/")}


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
