"""The names that an adapter may have in an export, and the one that follows from its folder."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Final

from lora_export.core.errors import AdapterError, UsageError
from lora_export.core.modes import BASE_GRAPH, BATCHED_GRAPH, SWAPPABLE_GRAPH

__all__ = ["adapter_name_from", "check_adapter_name", "is_adapter_name", "split_adapter"]

RESERVED_NAMES: Final = frozenset({BASE_GRAPH, SWAPPABLE_GRAPH, BATCHED_GRAPH, "model"})
_NAME_LIMIT: Final = 64
_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{_NAME_LIMIT - 1}}}")


def is_adapter_name(name: str) -> bool:
    """Whether an adapter may be called `name`."""
    return name not in RESERVED_NAMES and _NAME.fullmatch(name) is not None


def adapter_name_from(text: str) -> str:
    """Return the adapter's name that follows from a folder's; ``""`` where nothing remains.

    >>> adapter_name_from("Llama-3.1-8B-LoRA")
    'llama-3-1-8b-lora'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[:_NAME_LIMIT].rstrip("-_")


def check_adapter_name(name: str) -> str:
    """Return `name` if an adapter may be called so.

    Raises:
        AdapterError: It is reserved or ill-formed.
    """
    if name in RESERVED_NAMES:
        msg = f"the adapter name {name!r} is reserved"
        raise AdapterError(
            msg,
            hint=f"Reserved: {', '.join(sorted(RESERVED_NAMES))}. "
            "Give another: --adapter NAME=PATH.",
        )
    if not _NAME.fullmatch(name):
        msg = f"the adapter name {name!r} is not allowed"
        raise AdapterError(
            msg,
            hint="Use lower-case letters, digits, - and _, at most 64, the first no - or _: "
            "--adapter NAME=PATH.",
        )
    return name


def split_adapter(text: str) -> tuple[str | None, str]:
    """Return the name and the place in ``[NAME=]PATH``; a path may hold a ``=`` of its own.

    >>> split_adapter("sst2=adapters/sst2"), split_adapter("adapters/sst2")
    (('sst2', 'adapters/sst2'), (None, 'adapters/sst2'))

    Raises:
        UsageError: There is nothing before the ``=``.
    """
    name, separator, source = text.partition("=")
    if separator and not name:
        msg = f"the adapter {text!r} has no name before the ="
        raise UsageError(msg, hint="Write NAME=PATH, or the path alone.")
    if separator and ("/" not in name or (Path(source).exists() and not Path(text).exists())):
        return name, source
    return None, text
