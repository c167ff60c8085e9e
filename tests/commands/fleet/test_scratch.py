"""Exports that rows of a fleet take from a store into a machine's scratch folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.commands.fleet.scratch import Scratch
from lora_export.core.manifest import MANIFEST_NAME
from lora_export.fleet.store.artifacts import ArtifactStore
from lora_export.fleet.store.directory import DirectoryObjects

if TYPE_CHECKING:
    from pathlib import Path

KEY = "ab" * 32
ROW = {"kind": "export", "key": KEY, "artifact": "exports/a/merged", "adapter": None,
       "target": None, "mode": "merged"}  # fmt: skip


def test_a_row_that_was_made_anew_is_not_taken_from_the_scratch_folder(tmp_path: Path) -> None:
    """Its key is the same; of the store, or of another store, its bytes are others."""
    store = ArtifactStore(DirectoryObjects(tmp_path / "store"))
    scratch = Scratch(tmp_path / "scratch", store)
    made = tmp_path / "made"
    made.mkdir()
    trees = {}
    for text in ("old", "new", "old"):
        (made / MANIFEST_NAME).write_text(text)
        store.put(KEY, made, [MANIFEST_NAME], kind="export", name="a")
        trees[text] = scratch.tree_of([ROW])
        assert (trees[text] / "exports/a/merged" / MANIFEST_NAME).read_text() == text
    assert trees["old"] != trees["new"]
