"""HTML and SVG built as values: text is escaped where it enters, never later.

    tag("p", "a < b", id="x")   →   <p id="x">a &lt; b</p>

A child is `Markup`, which was built here, or text, which is escaped. Names and messages come from
strangers: control characters and those that turn the direction of text are shown by their number.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Markup", "clean", "join", "tag"]

_VOID: Final = frozenset({"meta", "br", "wbr", "circle", "path"})
_HIDDEN: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | None


def clean(text: object, limit: int | None = None) -> str:
    r"""Return text without what cannot be seen, cut to `limit` characters.

    >>> clean("a\x1b[31mb\u202ec"), clean("abcdef", 4)
    ('a\\x1b[31mb\\u202ec', 'abc…')
    """
    whole = _HIDDEN.sub(lambda found: repr(found[0])[1:-1], str(text))
    return whole if limit is None or len(whole) <= limit else f"{whole[: limit - 1]}…"


def join(parts: Iterable[Child]) -> Markup:
    """Return markup of several parts; text among them is escaped, None left out."""
    return Markup("".join(_escaped(part) for part in parts if part is not None))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Return an element; ``class_`` is ``class``, ``aria_label`` ``aria-label``; no None."""
    given = "".join(
        f' {_attribute(key)}="{escape(clean(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{given}>" if name not in {"circle", "path"} else f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def _escaped(part: Child) -> str:
    return part if isinstance(part, Markup) else escape(clean(part), quote=False)


def _attribute(key: str) -> str:
    """Return the name of an attribute; those of SVG keep their capitals."""
    return key.rstrip("_").replace("_", "-")
