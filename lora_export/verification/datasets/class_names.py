"""The names of a head's labels: those that were given, else the base's, else numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["HOW_TO_NAME", "are_numbers", "label_names"]

HOW_TO_NAME: Final = (
    "Name them with --labels (labels); for an adapter that is in the export already: "
    "add --replace --labels."
)
_NUMBERED: Final = re.compile(r"LABEL_\d+")


def label_names(
    own: Sequence[str] | None,
    base: Sequence[str] | None,
    config: Mapping[str, Any],
    width: int | None,
) -> tuple[str, ...]:
    """Return the names of a head's labels, as many as it has outputs.

    Args:
        own: Those that were given for the adapter.
        base: Those that were given for the export.
        config: The base's config; its ``id2label`` is taken where nothing was given.
        width: The outputs of the head; names of another number are of another head.
    """
    for names in (own, base, _of_config(config)):
        if names and width in {None, len(names)}:
            return tuple(names)
    return tuple(f"LABEL_{index}" for index in range(width or 0))  # as transformers has it


def are_numbers(names: Sequence[str]) -> bool:
    """Whether names say nothing: those that transformers makes up."""
    return all(_NUMBERED.fullmatch(name) for name in names)


def _of_config(config: Mapping[str, Any]) -> list[str] | None:
    table = config.get("id2label")
    if not isinstance(table, dict):
        return None
    found = {str(key): str(name) for key, name in table.items()}
    names = [found.get(str(index)) for index in range(len(found))]
    known = [name for name in names if name is not None]
    return known if len(known) == len(names) == len(set(known)) else None
