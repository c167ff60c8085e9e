"""The inputs given to a graph, checked against those that it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.dtypes import by_name
from lora_export.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from lora_export.graph.spec.signature import Input

__all__ = ["checked_feeds"]

_SHOWN = 5


def checked_feeds(
    feeds: Mapping[str, npt.ArrayLike],
    inputs: Sequence[Input],
    *,
    optional: Mapping[str, Input] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Return `feeds` as arrays that fit `inputs`: names, dtypes, sizes, and axes of one name alike.

    Args:
        feeds: A value for each input.
        inputs: What the graph reads.
        optional: Further inputs that may be given, by name; a Python number becomes what they read.

    Raises:
        UsageError: An input is missing, unknown, or does not fit.
    """
    names = {each.name for each in inputs}
    further = optional or {}
    if missing := [each.name for each in inputs if each.name not in feeds]:
        msg = f"the graph also reads {_listed(missing)}"
        raise UsageError(msg, hint="Give a value for each of the session's inputs.")
    if unknown := [name for name in feeds if name not in names and name not in further]:
        msg = f"the graph has no input {unknown[0]!r}"
        raise UsageError(msg, hint=f"It reads: {_listed([each.name for each in inputs])}.")
    given = [*inputs, *(further[name] for name in feeds if name in further)]
    arrays = {each.name: _array(feeds[each.name], each) for each in given}
    sizes: dict[str, tuple[int, str]] = {}
    for each in given:
        _require_fit(each, arrays[each.name], sizes)
    return arrays


def _array(values: npt.ArrayLike, wanted: Input) -> npt.NDArray[Any]:
    """Return a value as an array; a Python number has no dtype of its own."""
    plain = isinstance(values, (int, float))
    return np.asarray(values, by_name(wanted.dtype).numpy if plain else None)


def _require_fit(
    wanted: Input, values: npt.NDArray[Any], sizes: dict[str, tuple[int, str]]
) -> None:
    """Compare one value; `sizes` remembers each named axis with the input that it was seen in."""
    dtype = by_name(wanted.dtype).numpy
    if values.dtype != dtype:
        msg = f"input {wanted.name!r} is {values.dtype}, the graph reads {dtype}"
        raise UsageError(msg, hint=f"Convert it: values.astype({str(dtype)!r}).")
    shown = f"input {wanted.name!r} has the shape {list(values.shape)}"
    if len(values.shape) != len(wanted.axes):
        msg = f"{shown}, the graph reads {list(wanted.axes)}"
        text = "A single text is a batch of one: values[None]."
        raise UsageError(msg, hint=text if wanted.axes else "Give one number.")
    for size, axis in zip(values.shape, wanted.axes, strict=True):
        if isinstance(axis, int):
            if size != axis:
                msg = f"{shown}, the graph reads {list(wanted.axes)}"
                raise UsageError(msg)
            continue
        known, where = sizes.setdefault(axis, (size, wanted.name)) if axis else (size, "")
        if known != size:
            msg = f"{shown}: its axis {axis!r} is {size}, that of {where!r} is {known}"
            raise UsageError(msg)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
