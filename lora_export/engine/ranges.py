"""How large the dynamic axes of a graph may become: a range for each name.

TensorRT builds for ranges (optimization profiles), and refuses an input whose axes have none. A
name is enough for an axis, because exports give equal axes equal names; `DEFAULT_RANGES` are those
that hold where nobody says otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.base.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["DEFAULT_RANGES", "Range", "parse_range", "ranges_of"]


@dataclass(frozen=True)
class Range:
    """The sizes of an axis: the least, the one that kernels are chosen for, the largest."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        """Return ``1:128:512``."""
        return f"{self.min}:{self.opt}:{self.max}"


RANK_AXIS: Final = "lora_r"
TOTAL_AXIS: Final = "total_sequence"

DEFAULT_RANGES: Final[dict[str, Range]] = {
    "batch": Range(1, 1, 8),
    "sequence": Range(1, 128, 512),
    "past_sequence": Range(0, 128, 512),
    "encoder_sequence": Range(1, 128, 512),
    RANK_AXIS: Range(0, 8, 64),
}
"""By the axis's name, or by the part of it behind the last dot (``…query.lora_r``)."""

_RANGE: Final = re.compile(r"([^=]+)=(\d{1,9}):(\d{1,9}):(\d{1,9})")


def parse_range(text: str) -> tuple[str, Range]:
    """Return the axis and the range that ``AXIS=MIN:OPT:MAX`` says.

    >>> parse_range("sequence=1:128:512")
    ('sequence', Range(min=1, opt=128, max=512))

    Raises:
        UsageError: It is written in another way, or the sizes are not in order.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        msg = f"--axis {text!r} is no range"
        raise UsageError(msg, hint="Write AXIS=MIN:OPT:MAX, such as --axis sequence=1:128:512.")
    found = Range(*map(int, match.groups()[1:]))
    if not found.min <= found.opt <= found.max or found.max == 0:
        msg = f"--axis {text!r}: {found} is not in order"
        raise UsageError(msg, hint="MIN is at most OPT, OPT at most MAX, and MAX at least 1.")
    return match[1], found


def ranges_of(axes: Iterable[str], given: Mapping[str, Range]) -> dict[str, Range]:
    """Return the range of each axis that has one: given, a default, or the sum of two others.

    ``total_sequence`` is ``past_sequence`` and ``sequence``, as the mask of a cache is.
    """
    found: dict[str, Range] = {}
    for axis in axes:
        for name in (axis, axis.rpartition(".")[2]):
            known = given.get(name) or DEFAULT_RANGES.get(name)
            if known is not None:
                found[axis] = known
                break
        else:
            if axis == TOTAL_AXIS:
                parts = ranges_of(("past_sequence", "sequence"), given).values()
                sums = ([getattr(part, which) for part in parts] for which in ("min", "opt", "max"))
                found[axis] = Range(*map(sum, sums))
    return found
