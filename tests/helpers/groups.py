"""Tests that share what is costly to make run in one of pytest-xdist's workers.

A fixture of a module or a package is made once in each worker that runs one of its tests, and two
workers that need the same graph at the same time both trace it. The marks of pytest-xdist 3.8
(``xdist_group``) have no effect with pytest 9.2: it appends the group to ``Item._nodeid``, which
pytest does not read any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    import pytest

__all__ = ["SHARING", "FolderScheduling", "group_of"]

SHARING: Final = (
    "tests/bundle/",
    "tests/end_to_end/batched/",
    "tests/end_to_end/clients/",
    "tests/end_to_end/extend/",
    "tests/end_to_end/merge_and_build/",
    "tests/end_to_end/triton/",
    "tests/exports/merged_adapters/",
    "tests/layouts/",
    "tests/runtime/session/",
    "tests/triton/",
)
"""Folders whose ``conftest.py`` makes exports, or starts servers, for all their files."""


def group_of(nodeid: str) -> str:
    """Return the folder or the file whose tests one worker runs."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in SHARING if file.startswith(folder)), file)


class FolderScheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """For ``--dist loadgroup``: one worker has all tests of a file, or of some folders."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
