"""Optimization profiles: the shapes that an engine covers, from the names of the graph's axes.

A profile gives each axis a range ``min, opt, max``; the recipe writes

    profiles:
      - {batch: [1, 1, 8], sequence: [1, 128, 512]}
      - {batch: [1, 1, 8], sequence: 1, past_sequence: [0, 256, 1024]}

What it does not give is taken from the defaults. ``lora_r`` stands for the rank of every module;
``total_sequence`` follows from past and new positions. A static cache bounds the new positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UsageError
from lora_export.ondevice.judge.decoding import WRITE_INDICES
from lora_export.ondevice.printable import shell_command
from lora_export.ondevice.trt.build_settings import LARGEST_AXIS, Profile, ShapeRange

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_export.graph.spec.signature import Input

__all__ = [
    "RANK",
    "AxisRange",
    "axes_of",
    "axis_ranges",
    "parse_profile",
    "profiles_of",
    "require_axes",
]

AxisRange = tuple[int, int, int]
"""Smallest, tuned for, and largest size of an axis."""

RANK: Final = "lora_r"
"""What a profile calls the rank of every module."""

_PAST: Final = "past_sequence"
_NEW: Final = "sequence"
_TOTAL: Final = "total_sequence"
_BATCH: Final[AxisRange] = (1, 1, 8)
_LENGTH: Final[AxisRange] = (1, 128, 512)
_CACHED: Final[AxisRange] = (0, 256, 1024)
_LARGEST_RANK: Final = 64
_DEFAULT_RANK: Final = 16

_DEFAULTS: Final[dict[str, AxisRange]] = {
    "batch": _BATCH,
    _NEW: _LENGTH,
    "encoder_sequence": _LENGTH,
    _PAST: (0, 0, 1024),
}
_DECODE: Final[dict[str, AxisRange]] = {_NEW: (1, 1, 1), _PAST: _CACHED}
"""The second profile of a decoder with a cache, where it differs from the first."""

_LENGTHS: Final = frozenset({_NEW, _PAST, "encoder_sequence"})
"""Axes that a model has no more positions for than its config says."""

_PARTS: Final = 3


def profiles_of(
    inputs: Sequence[Input],
    given: Sequence[Mapping[str, AxisRange]] = (),
    *,
    longest: int,
    ranks: Sequence[int] = (),
    widths: Mapping[str, Sequence[int]] | None = None,
    others: Collection[str] = (),
) -> tuple[Profile, ...]:
    """Return the range of each dynamic input, profile by profile.

    Args:
        inputs: The graph's inputs.
        given: What the user says of axes; without any a profile, or for a decoder with a cache one
            for prefill and one for decoding.
        longest: How many positions the model has: what the defaults are cut to.
        ranks: The ranks of the adapters that are known.
        widths: Sizes that are known of further axes, such as the number of labels.
        others: Axes of other graphs, which a profile may name too: it is for all of them.

    Returns:
        Profiles that differ: those that differ in axes of other graphs only are one.

    Raises:
        UsageError: An axis is not known and not given, one is given that no graph has, or a static
            cache has no room for the new positions.
    """
    dynamic = [each for each in inputs if each.dynamic]
    if not dynamic:
        if given and not others:
            msg = "the graph has no dynamic axis, and profiles are given"
            raise UsageError(msg, hint="Leave them out.")
        return ()
    axes = axes_of(inputs)
    room = _room(inputs)
    for profile in given:
        _refuse_unknown(profile, axes.union(others))
        _require_room(profile, room)
    most = longest if room is None else min(longest, room)
    defaults = _defaults(most, ranks, widths or {})
    wanted: list[Mapping[str, AxisRange]] = [{**defaults, **profile} for profile in given]
    if not wanted:
        wanted = [defaults]
        if _PAST in axes or room is not None:
            cut = {axis: _cut(axis, row, most) for axis, row in _DECODE.items()}
            wanted.append({**defaults, **cut})
    found = [
        {each.name: _shapes(each, profile) for each in dynamic}
        for profile in (_summed(profile, axes) for profile in wanted)
    ]
    return tuple(each for at, each in enumerate(found) if each not in found[:at])


def axes_of(inputs: Sequence[Input]) -> set[str]:
    """Return the names of the axes of a graph, those of its ranks too."""
    return {_axis(each, at) for each in inputs for at in each.dynamic}


def _room(inputs: Sequence[Input]) -> int | None:
    """Return how many positions a static cache has; None where there is none."""
    masks = {each.name: each.axes[-1] for each in inputs if each.axes}
    length = masks.get("attention_mask")
    return length if WRITE_INDICES in masks and isinstance(length, int) else None


def _require_room(profile: Mapping[str, AxisRange], room: int | None) -> None:
    """Refuse more new positions than a static cache has: they would be written beside it."""
    if room is not None and _NEW in profile and profile[_NEW][2] > room:
        msg = f"a profile has {_NEW} up to {profile[_NEW][2]}, the static cache has room for {room}"
        raise UsageError(msg, hint=f"Use at most {room}, or export with a larger --cache-length.")


def _defaults(
    longest: int, ranks: Sequence[int], widths: Mapping[str, Sequence[int]]
) -> dict[str, AxisRange]:
    table = {axis: _cut(axis, row, longest) for axis, row in _DEFAULTS.items()}
    best = max(ranks, default=_DEFAULT_RANK) or 1
    table[RANK] = (1, best, max(best, _LARGEST_RANK))
    for axis, sizes in widths.items():
        table[axis] = (min(sizes), max(sizes), max(sizes))
    return table


def _cut(axis: str, row: AxisRange, longest: int) -> AxisRange:
    """Return a range no longer than the model; a past leaves room for one more position."""
    if axis not in _LENGTHS:
        return row
    most = longest - 1 if axis == _PAST else longest
    return (min(row[0], most), min(row[1], most), min(row[2], most))


def _summed(profile: Mapping[str, AxisRange], axes: set[str]) -> Mapping[str, AxisRange]:
    """Return the profile with the range of past and new positions together."""
    if _TOTAL not in axes or _TOTAL in profile or _NEW not in profile:
        return profile
    past = profile[_PAST] if _PAST in axes else (0, 0, 0)
    low, best, high = (a + b for a, b in zip(past, profile[_NEW], strict=True))
    return {**profile, _TOTAL: (low, best, high)}


def _axis(given: Input, at: int) -> str:
    """Return the name of an axis, made up where the graph has none."""
    return str(given.axes[at]) or f"{given.name}.{at}"


def _key(axis: str) -> str:
    return RANK if axis.endswith(f".{RANK}") else axis


def require_axes(profiles: Sequence[Mapping[str, AxisRange]], axes: set[str]) -> None:
    """Require that profiles name axes of a graph, or the rank of adapters.

    Args:
        profiles: The profiles.
        axes: The axes of the graph's inputs.

    Raises:
        UsageError: One names another axis.
    """
    for profile in profiles:
        _refuse_unknown(profile, {*axes, RANK})


def _refuse_unknown(profile: Mapping[str, AxisRange], axes: set[str]) -> None:
    known = {*axes, *map(_key, axes)}
    for axis in profile:
        if axis not in known:
            shown = ", ".join(sorted({_key(each) for each in axes}))
            msg = f"a profile names the axis {axis!r}, which the graph does not have"
            raise UsageError(msg, hint=f"Its axes: {shown}.")


def _shapes(given: Input, profile: Mapping[str, AxisRange]) -> ShapeRange:
    rows: list[AxisRange] = []
    for at, size in enumerate(given.axes):
        if isinstance(size, int):
            rows.append((size, size, size))
            continue
        axis = _axis(given, at)
        row = profile.get(axis, profile.get(_key(axis)))
        if row is None:
            msg = f"no profile gives the range of the axis {axis!r} of {given.name!r}"
            raise UsageError(msg, hint=f"Add it: --profile {shell_command([axis])}=MIN:OPT:MAX")
        rows.append(row)
    low, best, high = zip(*rows, strict=True)
    return ShapeRange(low, best, high)


def parse_profile(text: str) -> dict[str, AxisRange]:
    """Return the profile that a flag describes.

    >>> parse_profile("batch=1:4:8,sequence=128")
    {'batch': (1, 4, 8), 'sequence': (128, 128, 128)}

    Raises:
        UsageError: It is not of this form.
    """
    found: dict[str, int | list[int]] = {}
    for part in text.split(","):
        axis, separator, sizes = part.strip().partition("=")
        try:
            numbers = [int(each) for each in sizes.split(":")]
        except ValueError:
            numbers = []
        if not separator or not axis or len(numbers) not in (1, _PARTS) or axis in found:
            msg = f"--profile {text!r}: {part!r} is not AXIS=SIZE or AXIS=MIN:OPT:MAX"
            raise UsageError(msg, hint="For example: --profile batch=1:1:8,sequence=1:128:512")
        found[axis] = numbers[0] if len(numbers) == 1 else numbers
    return axis_ranges(found)


def axis_ranges(profile: Mapping[str, int | Sequence[int]]) -> dict[str, AxisRange]:
    """Return a profile of a recipe with every axis as a range.

    Raises:
        UsageError: The sizes of an axis are not in order, or larger than any axis.
    """
    found: dict[str, AxisRange] = {}
    for axis, sizes in profile.items():
        low, best, high = (sizes,) * _PARTS if isinstance(sizes, int) else sizes
        if high > LARGEST_AXIS:
            msg = f"the axis {axis!r} of a profile has max {high}"
            raise UsageError(msg, hint=f"No axis is longer than {LARGEST_AXIS}.")
        if not 0 <= low <= best <= high or high == 0:
            msg = f"the axis {axis!r} of a profile has min {low}, opt {best}, max {high}"
            raise UsageError(msg, hint="They must be in ascending order, and not negative.")
        found[axis] = (low, best, high)
    return found
