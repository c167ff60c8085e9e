"""The scratch folder of a machine: inputs and exports of a fleet, taken from its store once each.

    SCRATCH/inputs/CONTENT/NAME      a base or an adapter, by its content
    SCRATCH/trees/CONTENT/exports/…  an export by its artifact's content; rows add adapters to it
    SCRATCH/locks/…

It may be removed when no run is under way. Workers of one machine share it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.fleet.adopt import adopt_adapter, adopt_engines, adopt_stacks
from lora_export.core.errors import StorageError
from lora_export.core.files import (
    atomic_write_bytes,
    exclusive_lock,
    is_file_name,
    staging_folder,
    storage_errors,
)
from lora_export.core.manifest import is_export
from lora_export.core.modes import Mode
from lora_export.fleet.content import content_of
from lora_export.ondevice.file_opening import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.fleet.store.artifacts import Artifact, ArtifactStore

__all__ = ["Marks", "Scratch", "add_ingredients", "default_scratch", "mark_of"]

_LIMIT_BYTES: Final = 1 << 10


def default_scratch() -> Path:
    """Return the scratch folder of this user: ``$LORA_EXPORT_SCRATCH``, or below ``$TMPDIR``."""
    if own := os.environ.get("LORA_EXPORT_SCRATCH"):
        return Path(own)
    return Path(tempfile.gettempdir()) / f"lora-export-fleet-{os.getuid()}"


class Scratch:
    """See the module.

    Args:
        root: The folder.
        store: Where inputs and artifacts come from.

    Raises:
        StorageError: The folder cannot be made, or is somebody else's.
    """

    def __init__(self, root: Path, store: ArtifactStore) -> None:
        self.root, self._store = root, store
        with storage_errors(str(root)):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root.stat().st_uid != os.getuid():
                msg = f"the scratch folder {str(root)!r} belongs to another user"
                raise StorageError(msg, hint="Name another: LORA_EXPORT_SCRATCH=FOLDER")
            (root / "locks").mkdir(exist_ok=True)

    def input_of(self, path: str, content: str) -> Path:
        """Return an input as a folder or file of this machine.

        Args:
            path: The place that the plan names.
            content: The hash of its content.

        Raises:
            StorageError: The store does not have it, or refuses.
        """
        place: Path = self.root / "inputs" / content / Path(path).name
        with exclusive_lock(self.root / "locks" / content):
            if not place.exists():
                with storage_errors(str(place)):
                    place.parent.mkdir(parents=True, exist_ok=True)
                with staging_folder(place.parent, "input") as staging:
                    artifact = self._store.get(content, staging / "whole")
                    alone = self._file_of(artifact, content)
                    with storage_errors(str(place)):
                        (staging / "whole" / alone if alone else staging / "whole").rename(place)
        return place

    def _file_of(self, artifact: Artifact, content: str) -> str | None:
        """Return the name of an input that is a file; None of one that is a folder.

        Raises:
            StorageError: It has another content than its key says.
        """
        hashes = {path: file.sha256 for path, file in artifact.files.items()}
        alone = artifact.about.get("file")
        if alone is None and content_of(hashes) == content:
            return None
        if isinstance(alone, str) and is_file_name(alone) and hashes == {alone: content}:
            return alone
        msg = f"the input {artifact.name!r} in the store {self._store.place!r} has another content"
        raise StorageError(msg, hint="Remove the store's record of it, and run the fleet again.")

    def tree_of(self, ingredients: Sequence[Mapping[str, Any]]) -> Path:
        """Return a tree with the export of a row, and in it what other rows have made.

        Args:
            ingredients: The rows, an export first; each with ``kind``, ``key``, ``artifact``,
                ``adapter``, ``target`` and ``mode``.

        Raises:
            StorageError: The store does not have one of them, or refuses.
        """
        first = ingredients[0]
        tree: Path = self.root / "trees" / self._content_of(first["key"])
        export_dir = tree / first["artifact"]
        with exclusive_lock(self.root / "locks" / first["key"]):
            if not is_export(export_dir):
                with staging_folder(export_dir.parent, "export") as staging:
                    self._store.get(first["key"], staging / "whole")
                    with storage_errors(str(export_dir)):
                        (staging / "whole").rename(export_dir)
            add_ingredients(self._store, export_dir, ingredients, Marks(tree / "marks"))
        return tree

    def _content_of(self, key: str) -> str:
        """Return the hash of an artifact's files: a row made anew may have other bytes."""
        artifact = self._store.read(key)
        if artifact is None:
            return key  # which `ArtifactStore.get` refuses
        return content_of({path: file.sha256 for path, file in artifact.files.items()})


def add_ingredients(
    store: ArtifactStore, export_dir: Path, ingredients: Sequence[Mapping[str, Any]], marks: Marks
) -> None:
    """Put what rows have made into an export; what is in it already stays.

    Args:
        store: The store.
        export_dir: The export.
        ingredients: See `Scratch.tree_of`.
        marks: What is in it.
    """
    first, others = ingredients[0], ingredients[1:]
    if first["mode"] == Mode.BATCHED:
        stacked = [each for each in others if each["kind"] == "adapter"]
        others = [each for each in others if each["kind"] != "adapter"]
        last = (stacked or [first])[-1]
        if marks.of("stacks") != last["key"] and (stacked or marks.of("stacks")):
            with _fetched(store, export_dir, last["key"]) as packed:
                adopt_stacks(export_dir, packed)
            marks.write("stacks", last["key"])
    for each in others:
        mark = mark_of(each)
        if marks.of(mark) == each["key"]:
            continue
        with _fetched(store, export_dir, each["key"]) as packed:
            if each["kind"] == "engine":
                adopt_engines(export_dir, packed)
            else:
                adopt_adapter(export_dir, packed, each["adapter"])
        marks.write(mark, each["key"])


def mark_of(row: Mapping[str, Any]) -> str:
    """Return the name of the mark of an ingredient."""
    if row["kind"] == "adapter" and row["mode"] == Mode.BATCHED:
        return "stacks"
    return "-".join(str(row[part]) for part in ("kind", "adapter", "target") if row[part])


class Marks:
    """The keys of the rows whose results are in a tree; a file each.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, name: str) -> str | None:
        """Return a mark, or None."""
        try:
            return read_file(self._folder / name, _LIMIT_BYTES).decode("ascii")
        except (OSError, ValueError):
            return None

    def write(self, name: str, key: str) -> None:
        """Write a mark."""
        with storage_errors(str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(self._folder / name, key.encode())

    def clear(self) -> None:
        """Remove all marks."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a mark: what it stands for is about to change."""
        (self._folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _fetched(store: ArtifactStore, export_dir: Path, key: str) -> Iterator[Path]:
    with staging_folder(export_dir.parent, "packed") as staging:
        store.get(key, staging / "packed")
        yield staging / "packed"
