"""``fleet fetch``: the exports and bundles of a store, laid out in a directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.commands.fleet.assembly import assemble, stored_rows
from lora_export.fleet.store.open_store import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.core.progress import Progress

__all__ = ["fetch_fleet"]


def fetch_fleet(
    place: str, output: Path, progress: Progress, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Lay out what the last run of a fleet has made.

    Args:
        place: The store: a URL, or a directory.
        output: The directory.
        progress: Told what is fetched.
        only: Exports as ``BASE/VARIANT``; all by default.

    Raises:
        InputError: No run has ended in the store.
        StorageError: The store or the disk refuses, or an artifact is damaged.
    """
    store = open_store(place)
    progress.start(f"fetching from {place}")
    rows = stored_rows(store)
    chosen = [row for row in rows if not only or f"{row['base']}/{row['variant']}" in only]
    made = assemble(store, chosen, output)
    return {"store": place, "output": str(output), "made": [str(each) for each in made]}
