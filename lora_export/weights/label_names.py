"""The names of a head's classes, and a config that has them.

Names are of a head. Where the adapter brings the head, the base's names say nothing of it, even
where they are as many: they may be another task's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.core.json_file import JsonObject

__all__ = ["config_of_head", "named_classes", "names_of_head", "note_on_names", "numbered"]

_PROBLEM: Final = "problem_type"
_SHOWN: Final = 3


def named_classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names in a config's ``id2label``; None where there are none, or two are alike."""
    table = config.get("id2label")
    if not isinstance(table, dict) or not table:
        return None
    found = {str(key): name for key, name in table.items()}
    names = [found.get(str(index)) for index in range(len(found))]
    known = tuple(name for name in names if isinstance(name, str))
    return known if len(known) == len(names) == len(set(known)) else None


def numbered(width: int) -> tuple[str, ...]:
    """Return ``LABEL_0``, ``LABEL_1``, …, as transformers names classes without names."""
    return tuple(f"LABEL_{index}" for index in range(width))


def names_of_head(
    width: int,
    *,
    given: Sequence[str] | None,
    own: Mapping[str, Any],
    base: Mapping[str, Any],
    brought: bool,
) -> tuple[str, ...]:
    """Return the names of the classes of an adapter's head.

    Args:
        width: The outputs of the head.
        given: What the user calls them; as many as there are outputs.
        own: The ``config.json`` in the adapter's folder; empty without one.
        base: The base's ``config.json``.
        brought: Whether the adapter brings the head, in place of the base's.
    """
    if given is not None:
        return tuple(given)
    for config in (own, {} if brought else base):
        names = named_classes(config)
        if names is not None and len(names) == width:
            return names
    return numbered(width)


def note_on_names(adapter: str, names: Sequence[str], base: Mapping[str, Any]) -> str | None:
    """Return a note where the classes of an adapter have numbers and as many of the base's names.

    Args:
        adapter: The adapter's name.
        names: The names of its classes.
        base: The base's ``config.json``.
    """
    held = named_classes(base)
    if held is None or len(held) != len(names) or tuple(names) != numbered(len(names)):
        return None
    if held == tuple(names):
        return None
    shown = ", ".join(held[:_SHOWN]) + (", …" if len(held) > _SHOWN else "")
    return (
        f"the classes of adapter {adapter!r} have no names, and those of the base ({shown}) belong "
        "to its own head; name them with --labels"
    )


def config_of_head(
    config: Mapping[str, Any],
    names: Sequence[str],
    *,
    own: Mapping[str, Any],
    brought: bool,
) -> JsonObject:
    """Return `config` with the classes of an adapter's head.

    ``problem_type`` decides between sigmoid and softmax: that of the base's head is left out where
    the adapter brings another head, unless the adapter's own config has one.

    Args:
        config: The base's ``config.json``.
        names: The names of the classes.
        own: The ``config.json`` in the adapter's folder; empty without one.
        brought: Whether the adapter brings the head.
    """
    table = dict(config)
    table["id2label"] = {str(index): name for index, name in enumerate(names)}
    table["label2id"] = {name: index for index, name in enumerate(names)}
    table.pop("num_labels", None)
    if brought:
        table.pop(_PROBLEM, None)
        same_head = len(named_classes(own) or ()) in {0, len(names)}
        if own.get(_PROBLEM) is not None and same_head:
            table[_PROBLEM] = own[_PROBLEM]
    return table
