"""HTML and SVG built as values: text is escaped where it enters, never later.

    tag("p", "a < b", id="x")   →   <p id="x">a &lt; b</p>

A child is `Markup`, which was built here, or text, which is escaped: markup, and by `printable`
what cannot be seen.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from lora_export.ondevice.printable import CELL_LIMIT, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Markup", "join", "tag"]

_VOID: Final = frozenset({"meta", "br", "wbr", "circle", "path"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | None


def join(parts: Iterable[Child]) -> Markup:
    """Return markup of several parts; text among them is escaped, None left out."""
    return Markup("".join(_escaped(part) for part in parts if part is not None))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Return an element; ``class_`` is ``class``, ``aria_label`` ``aria-label``; no None."""
    given = "".join(
        f' {_attribute(key)}="{escape(printable(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{given}>" if name not in {"circle", "path"} else f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def _escaped(part: Child) -> str:
    return part if isinstance(part, Markup) else escape(printable(part, CELL_LIMIT), quote=False)


def _attribute(key: str) -> str:
    """Return the name of an attribute; those of SVG keep their capitals."""
    return key.rstrip("_").replace("_", "-")
