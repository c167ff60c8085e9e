"""The inputs of a build: its checkpoint and adapters, and what follows from their files."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.commands.adapter_inputs import read_specs
from lora_export.commands.adapter_notes import notes_of, opened_base, with_notes
from lora_export.commands.approximated import as_rank_applied
from lora_export.commands.build_checks import existing_export, require_layers, require_one_graph
from lora_export.commands.build_config import resolve_config
from lora_export.commands.build_form import require_form_for
from lora_export.commands.bundle import readable
from lora_export.commands.open_base import note_on_tokenizer, open_base
from lora_export.exports.padding import as_exported
from lora_export.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lora_export.commands.adapter_inputs import LoadedAdapter
    from lora_export.commands.build_config import BuildConfig
    from lora_export.commands.recipe import Recipe
    from lora_export.core.manifest import Manifest
    from lora_export.core.progress import Progress
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["BuildInputs", "fingerprint_in_background", "read_inputs"]


@dataclass(frozen=True)
class BuildInputs:
    """The inputs of a build.

    Attributes:
        output: The export directory.
        existing: Its manifest, where there is an export already.
        checkpoint: The base.
        adapters: The recipe's adapters, combined where it says so; their tensors are unread.
        config: Task, dtype, opset and interface.
        notes: What the user should know of the adapters and their base.
    """

    output: Path
    existing: Manifest | None
    checkpoint: Checkpoint
    adapters: tuple[LoadedAdapter, ...]
    config: BuildConfig
    notes: tuple[str, ...]


def read_inputs(recipe: Recipe, tell: Progress, *, strict: bool) -> BuildInputs:
    """Read headers and configs, and check what they tell before anything is traced or written.

    Args:
        recipe: What to build.
        tell: Told the notes on adapters.
        strict: Whether it is an error that an adapter names another base.

    Raises:
        LoraExportError: See the class of the error.
    """
    output = readable(recipe.path(recipe.output))
    existing = existing_export(output)
    checkpoint = open_base(recipe.base, recipe.base_override, recipe.folder)
    if existing is not None:
        checkpoint = as_exported(checkpoint, output)
    adapters = read_specs(
        recipe.adapters, recipe.folder, recipe.combine, base_config=checkpoint.config
    )
    adapters = as_rank_applied(adapters, checkpoint, recipe.mode, tell)
    config = resolve_config(recipe, checkpoint, [each.adapter for each in adapters])
    require_one_graph(recipe, config.task)
    require_form_for(recipe, config.task, config.dtype, config.choices)
    if existing is None and recipe.graph is None:
        require_layers(adapters, config, recipe.mode)
    adapters = with_notes(
        adapters,
        opened_base(checkpoint),
        tell,
        model_type=str(checkpoint.config["model_type"]),
        strict=strict,
    )
    notes = notes_of(adapters)
    if (lacking := note_on_tokenizer(checkpoint)) is not None:
        tell.note(f"note: {lacking}")
        notes = (*notes, lacking)
    return BuildInputs(output, existing, checkpoint, adapters, config, notes)


@contextlib.contextmanager
def fingerprint_in_background(
    checkpoint: Checkpoint, known: str | None = None
) -> Iterator[Callable[[], str]]:
    """Compute the fingerprint of a base while the graph is traced; an error elsewhere stops it.

    Args:
        checkpoint: The base.
        known: Its fingerprint, where that is known.
    """
    if known is not None:
        yield lambda: known
        return
    stop = threading.Event()

    def keep_on(_: int) -> None:
        if stop.is_set():
            raise _Stopped

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fingerprint, checkpoint, keep_on)
        try:
            yield future.result
        finally:
            stop.set()


class _Stopped(Exception):  # noqa: N818  (ends a thread; nobody sees it)
    """The fingerprint is not needed any more."""
