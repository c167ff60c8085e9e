"""``inspect``: the public function, whose paths may be ids of the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from lora_export.commands.inspect.inspect_path import Reading, inspect_pair, inspect_path
from lora_export.core.hub import local_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.commands.inspect.describe_adapter import AdapterReport
    from lora_export.commands.inspect.describe_checkpoint import CheckpointReport
    from lora_export.commands.inspect.describe_export import ExportReport
    from lora_export.commands.inspect.inspect_path import PairReport
    from lora_export.core.progress import Progress

__all__ = ["inspect"]


@overload
def inspect(
    path: str | Path,
    adapter: None = None,
    *,
    hashed: bool = False,
    adapter_format: str | None = None,
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
    subfolder: str | None = None,
    progress: Progress | None = None,
) -> CheckpointReport | AdapterReport | ExportReport: ...


@overload
def inspect(
    path: str | Path,
    adapter: str | Path,
    *,
    hashed: bool = False,
    adapter_format: str | None = None,
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
    subfolder: str | None = None,
    progress: Progress | None = None,
) -> PairReport: ...


def inspect(
    path: str | Path,
    adapter: str | Path | None = None,
    *,
    hashed: bool = False,
    adapter_format: str | None = None,
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
    subfolder: str | None = None,
    progress: Progress | None = None,
) -> CheckpointReport | AdapterReport | ExportReport | PairReport:
    """Describe what is at `path`; with `adapter`, also whether it fits the base at `path`.

    Args:
        path: A checkpoint, an adapter or an export directory, or an id of the hub.
        adapter: An adapter, where `path` is a base: a checkpoint or an export.
        hashed: Whether to read everything: an export's files are compared with their SHA-256, a
            checkpoint's fingerprint is computed.
        adapter_format: The adapter's format, where that is not to be detected.
        alpha: The alpha that it was trained with, where its format does not record it.
        enable_lora: Which blocks a ``MergedLinear`` of loralib adapts.
        subfolder: The folder below the adapter's path that holds it.
        progress: Told about hashing.

    Raises:
        InputError: Nothing is there, nothing of the three kinds, or a file is damaged. A mismatch
            is not an error, but in the report.
        UsageError: The two are in the wrong order.
        UnsupportedError: A variant that is not handled, or a newer format.
    """
    reading = Reading(adapter_format, alpha, enable_lora)
    if adapter is None:
        found = local_path(str(path), subfolder=subfolder)
        return inspect_path(found, hashed=hashed, progress=progress, reading=reading)
    return inspect_pair(
        local_path(str(path)),
        local_path(str(adapter), subfolder=subfolder),
        hashed=hashed,
        progress=progress,
        reading=reading,
    )
