"""The findings of the preflight checks, as values without a text layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SEVERITIES", "Finding", "Severity", "ordered"]

Severity = Literal["error", "warning", "note"]

SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
"""What prevents an engine; what may, or is not known; what is good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: How grave it is.
        code: What kind of thing it is, for programs: ``operator-refused``.
        subject: What it is about: an operator, an input, an axis.
        message: What is the matter.
        hint: What to do next; empty where there is nothing to do.
        where: The nodes or inputs that it was found at, in the graph's order.
    """

    severity: Severity
    code: str
    subject: str
    message: str
    hint: str = ""
    where: tuple[str, ...] = ()


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the gravest first; of the same gravity, in their order."""
    return tuple(sorted(findings, key=lambda found: SEVERITIES.index(found.severity)))
