"""The names of settings in messages: flags on the command line, keys in a recipe.

A message about a setting that can be given either way has both names, as in
``--dataset (verify.dataset)``. The command line keeps the one that its user wrote.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import LoraExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["naming_keys", "with_flags", "with_keys"]

_KEYS: Final = (
    r"verify\.[a-z_]+", "adapters", "cache", "cache_length", "dtype", "graph", "labels", "logits",
    "lora_modules", "mode", "opset", "profiles",
)  # fmt: skip
"""Keys that messages name."""
_BOTH: Final = re.compile(rf"(--[a-z-]+) \(({'|'.join(_KEYS)})\)")


def with_flags(text: str) -> str:
    """Return a message with the flag of each setting.

    >>> with_flags("add --dataset (verify.dataset)")
    'add --dataset'
    """
    return _BOTH.sub(r"\1", text)


def with_keys(text: str) -> str:
    """Return a message with the recipe key of each setting.

    >>> with_keys("leave --no-cache (cache) out")
    'leave cache out'
    """
    return _BOTH.sub(r"\2", text)


@contextmanager
def naming_keys() -> Iterator[None]:
    """Give errors of the block the recipe keys of settings."""
    try:
        yield
    except LoraExportError as error:
        error.message = with_keys(error.message)
        error.hint = with_keys(error.hint) if error.hint else error.hint
        raise
