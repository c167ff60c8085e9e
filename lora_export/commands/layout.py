"""``layout``: an export as a directory that another runtime opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.core.errors import UsageError
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import BASE_GRAPH, SWAPPABLE_GRAPH, Mode
from lora_export.exports.servable import require_servable
from lora_export.exports.stored_adapters import mode_of
from lora_export.layouts.description import Subject, kind_of
from lora_export.layouts.runtimes import runtime_row
from lora_export.layouts.write_layouts import write_layouts

if TYPE_CHECKING:
    from lora_export.core.manifest import Manifest
    from lora_export.core.progress import Progress
    from lora_export.layouts.write_layouts import WrittenLayout

__all__ = ["RuntimeLayout", "layout"]


@dataclass(frozen=True)
class RuntimeLayout:
    """The directories that were written for one runtime.

    Attributes:
        runtime: Its name.
        output: The directory that was asked for.
        folders: The directories: `output` itself, or one below it for each adapter.
        opening: How a user opens one; ``{folder}`` stands for it.
    """

    runtime: str
    output: Path
    folders: tuple[WrittenLayout, ...]
    opening: str

    def as_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return {
            "runtime": self.runtime,
            "output": str(self.output),
            "folders": [
                {
                    "folder": str(each.folder),
                    "adapters": list(each.adapters),
                    "files": list(each.files),
                    "bytes": each.size_bytes,
                    "notes": list(each.notes),
                }
                for each in self.folders
            ],
        }


def layout(
    export: str | Path,
    runtime: str,
    output: str | Path,
    *,
    adapter: str | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> RuntimeLayout:
    """Write an export, or one adapter of it, as a directory that a runtime opens.

    With an adapter (or ``base``) `output` is its directory. Without one it is the directory of the
    base where the export has no adapters; of a swappable export one with all packs, where the
    runtime swaps; and else it has a directory below it for each adapter.

    Args:
        export: The export directory; it stays as it is.
        runtime: A name of `lora_export.layouts.runtimes.RUNTIMES`.
        output: The new directory.
        adapter: An adapter, or ``base``.
        replace: Whether a layout that is there is replaced.
        progress: Told what happens, and before anything is written how many bytes it takes.

    Raises:
        UsageError: There is no such runtime or adapter.
        UnsupportedError: The runtime cannot run what the export holds.
        LoraExportError: See the class of the error; nothing half-written is left.
    """
    row = runtime_row(runtime)
    export_dir, target = Path(export), Path(output)
    manifest = read_manifest(export_dir)
    row.require(kind_of(manifest))
    subjects = {
        where: Subject(export_dir, manifest, name)
        for where, name in _names(manifest, export_dir, adapter, swaps=row.swaps).items()
    }
    for each in subjects.values():
        for name in each.adapters or (BASE_GRAPH,):
            require_servable(manifest, name)
    written = write_layouts(
        subjects, row.describe, target, runtime=runtime, replace=replace, progress=progress
    )
    return RuntimeLayout(runtime, target, tuple(written), row.opening_of(manifest.base.task))


def _names(
    manifest: Manifest, export_dir: Path, adapter: str | None, *, swaps: bool
) -> dict[str, str]:
    """Return the adapter, or the shared graph, of each folder below the output."""
    if adapter is not None:
        if adapter != BASE_GRAPH and adapter not in manifest.adapters:
            msg = f"{str(export_dir)!r} has no adapter {adapter!r}"
            known = ", ".join((*manifest.adapters, BASE_GRAPH))
            raise UsageError(msg, hint=f"It has: {known}.")
        return {"": adapter}
    if not manifest.adapters:
        return {"": BASE_GRAPH}
    if swaps and mode_of(manifest) == Mode.SWAPPABLE:
        return {"": SWAPPABLE_GRAPH}
    return {name: name for name in manifest.adapters}
