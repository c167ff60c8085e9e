"""The name of an export's bundle, and the path that it is written to by default."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.core.errors import UsageError
from lora_export.ondevice.bundle.bundle_index import NAME_LIMIT, is_bundle_name
from lora_export.ondevice.file_opening import real_path

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["default_path", "name_of"]


def default_path(output: Path, target: str) -> Path:
    """Return where the bundle of an export goes: beside it."""
    whole = output if output.name not in {"", ".."} else real_path(output)
    return whole.parent / f"{whole.name}.{target}.tar"


def name_of(export_dir: Path, target: str, given: str | None = None) -> str:
    """Return the name of a bundle and of the folder in it.

    By default that is the name of the export directory and the target's; characters that no
    bundle's name has become dashes.

    Args:
        export_dir: The export.
        target: The target's name.
        given: What the user calls it.

    Raises:
        UsageError: No bundle can be called so.
    """
    if given is None:
        room = NAME_LIMIT - len(target) - 1
        stem = (
            re.sub(r"[^A-Za-z0-9_.-]+", "-", real_path(export_dir).name)
            .lstrip("-_.")
            .rstrip("-")[:room]
        )
        return f"{stem or 'export'}-{target}"
    if not is_bundle_name(given):
        msg = f"a bundle cannot be called {given[: 2 * NAME_LIMIT]!r}"
        hint = (
            f"--name takes letters, digits and _.-, a letter or digit first, {NAME_LIMIT} at most."
        )
        raise UsageError(msg, hint=hint)
    return given
