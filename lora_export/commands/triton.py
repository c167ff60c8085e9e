"""An export on its way to a server: the model repository that a recipe's section describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.progress import Progress, Silent
from lora_export.triton.repository import Written, write_repository

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.commands.recipe import TritonSpec

__all__ = ["write_triton"]


def write_triton(
    output: Path, repository: Path, spec: TritonSpec, progress: Progress | None = None
) -> Written:
    """Write the model repository of an export; what it will take is told before.

    Args:
        output: The export directory.
        repository: Where the models go.
        spec: The section ``triton``.
        progress: Told what happens.

    Raises:
        LoraExportError: See the class of the error; no model is half there.
    """
    tell = progress or Silent()
    return write_repository(
        output,
        repository,
        name=spec.name,
        backend=spec.backend,
        way=spec.way,
        adapters=spec.adapters,
        text=spec.text,
        settings=spec,
        progress=tell,
    )
