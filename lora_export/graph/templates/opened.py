"""A template that was read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Opened"]


@dataclass(frozen=True)
class Opened:
    """A template, read and checked.

    Attributes:
        table: Its ``template.json``.
        graphs: Its graphs, by component.
        sha256: The hash of its file.
    """

    table: Mapping[str, Any]
    graphs: Mapping[str, bytes]
    sha256: str
