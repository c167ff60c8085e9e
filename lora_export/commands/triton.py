"""``triton``: the model repository that a recipe's section describes, written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.core.progress import Progress, Silent

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.commands.outcome import Outcome
    from lora_export.commands.recipe import Recipe, TritonSpec
    from lora_export.triton.repository import ModelRepository

__all__ = ["with_repository", "write_triton"]


def with_repository(
    outcome: Outcome, recipe: Recipe, progress: Progress, *, strict: bool
) -> Outcome:
    """Write the model repository that a recipe asks for; return the outcome with it.

    An export that failed a gate is not served: the outcome says so by its exit code.

    Raises:
        LoraExportError: See `write_triton`.
    """
    spec = recipe.triton
    if spec is None or spec.repository is None or outcome.exit_code(strict=strict) != 0:
        return outcome
    repository = recipe.path(spec.repository)
    return replace(outcome, triton=write_triton(outcome.output, repository, spec, progress))


def write_triton(
    output: Path, repository: Path, spec: TritonSpec, progress: Progress | None = None
) -> ModelRepository:
    """Write the model repository of an export; what it will take is told before.

    Args:
        output: The export directory.
        repository: Where the models go.
        spec: The section ``triton``.
        progress: Told what happens.

    Raises:
        LoraExportError: See the class of the error; no model is half there.
    """
    from lora_export.triton.repository import write_repository

    tell = progress or Silent()
    return write_repository(
        output,
        repository,
        name=spec.name,
        backend=spec.backend,
        way=spec.way,
        adapters=spec.adapters,
        text=spec.text,
        hardlink=spec.hardlink,
        settings=spec,
        progress=tell,
    )
