"""Which reader an adapter needs: one row per format, asked in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.adapters.formats.peft import is_peft, read_peft
from lora_export.base.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter

__all__ = ["is_adapter", "read_adapter"]

_READERS: Final[dict[str, tuple[Callable[[Path], bool], Callable[..., Adapter]]]] = {
    "peft": (is_peft, read_peft),
}


def is_adapter(folder: Path) -> bool:
    """Whether some reader recognises what is in `folder`."""
    return any(recognises(folder) for recognises, _ in _READERS.values())


def read_adapter(folder: Path, *, name: str, source: str) -> Adapter:
    """Read the adapter in `folder`, whatever its format.

    Raises:
        AdapterError: Nothing there, or nothing that a reader recognises.
    """
    if not folder.is_dir():
        msg = f"adapter {source!r} is not a directory"
        raise AdapterError(msg, hint="Give a folder that holds adapter_config.json.")
    for recognises, read in _READERS.values():
        if recognises(folder):
            return read(folder, name=name, source=source)
    msg = f"{source!r} holds no adapter that is recognised"
    raise AdapterError(
        msg, hint=f"Known formats: {', '.join(_READERS)}. PEFT writes adapter_config.json."
    )
