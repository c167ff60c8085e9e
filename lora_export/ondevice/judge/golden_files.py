"""Golden inputs and outputs: a device checks a graph against them without torch.

One ``.npz`` per graph, written when the graph was verified (`lora_export.verification.golden`):
``{i}.input.{name}``, ``{i}.mask`` and ``{i}.expected`` for case i, ``count`` and ``effect``;
``switch`` only where there is such a length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt

from lora_export.ondevice.device_errors import ExportDirectoryError
from lora_export.ondevice.file_opening import reason_of
from lora_export.ondevice.npz_reading import DAMAGED_NPZ, read_npz

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["NO_EFFECT_KNOWN", "Case", "Golden", "read_arrays", "read_golden", "valid_rows"]

Array = npt.NDArray[Any]

_LIMIT_BYTES: Final = 1 << 30
_SMALL_BYTES: Final = 1 << 24
_MOST_PACKED: Final = 100
"""A file above `_SMALL_BYTES` does not unpack to more than so many times its size."""

_DAMAGED: Final = (ValueError, TypeError, KeyError, OverflowError)
_HINT: Final = "Copy it again, or verify the export against the base: --base."
NO_EFFECT_KNOWN: Final = -1.0
"""What stands for the effect of a graph without an adapter."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        feeds: The graph's inputs.
        mask: Which positions count, ``[batch, length]``; ``[batch, 1]`` where there are none. Of
            an encoder-decoder these are the decoder's; no row is padded there.
    """

    feeds: Mapping[str, Array] = field(repr=False)
    mask: Array = field(repr=False)


@dataclass(frozen=True)
class Golden:
    """Inputs, the reference's outputs for them, and the adapter's effect.

    Attributes:
        cases: The inputs.
        expected: The reference's output for each, float32.
        effect: The adapter's effect over all cases of the verification; None for the base.
        switch: The longest text with the rotary frequencies of short ones; None where all texts
            have the same (`lora_export.ondevice.judge.decoding.run_in_pieces`).
    """

    cases: Sequence[Case] = field(repr=False)
    expected: Sequence[Array] = field(repr=False)
    effect: float | None
    switch: int | None = None


def read_golden(path: Path) -> Golden:
    """Read a golden file; never unpickles.

    Raises:
        ExportDirectoryError: It is missing or damaged.
    """
    arrays = read_arrays(path)
    try:
        effect = float(arrays.pop("effect"))
        count = int(arrays.pop("count"))
        switch = int(arrays.pop("switch")) if "switch" in arrays else None
        if count > len(arrays) or {key.partition(".")[0] for key in arrays} != {
            str(index) for index in range(count)
        }:
            msg = f"it does not hold its {count} cases"
            raise ValueError(msg)
        cases = [_case(arrays, index) for index in range(count)]
        expected = [arrays[f"{index}.expected"] for index in range(count)]
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    return Golden(cases, expected, None if effect == NO_EFFECT_KNOWN else effect, switch)


def read_arrays(path: Path) -> dict[str, Array]:
    """Read an ``.npz`` file of bounded size; never unpickles.

    Raises:
        ExportDirectoryError: It is missing, damaged, or unpacks to more than it should.
    """
    try:
        return read_npz(path, _LIMIT_BYTES, small_bytes=_SMALL_BYTES, most_packed=_MOST_PACKED)
    except DAMAGED_NPZ as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ExportDirectoryError:
    why = reason_of(error) if isinstance(error, OSError) else str(error)
    msg = f"the golden file {str(path)!r} is missing or damaged: {why}"
    return ExportDirectoryError(msg, hint=_HINT)


def _case(arrays: dict[str, Array], index: int) -> Case:
    start = f"{index}.input."
    feeds = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
    mask = arrays[f"{index}.mask"]
    if mask.dtype != bool or mask.ndim != 2:  # noqa: PLR2004  (rows, positions)
        msg = f"the mask of case {index} is {mask.dtype} of shape {mask.shape}"
        raise ValueError(msg)
    return Case(feeds, mask)


def valid_rows(output: Array, case: Case, *, per_token: bool) -> Array:
    """Return the rows ``[n, width]`` of an output that count: padding does not.

    An output of the last position only has one row for each sequence.

    Raises:
        ExportDirectoryError: The output is not of as many rows or positions as the case.
    """
    if per_token and output.shape[1] == 1 != case.mask.shape[1]:
        per_token = False
    counted = case.mask.shape[: 2 if per_token else 1]
    if output.shape[: len(counted)] != counted or not counted[0]:
        msg = f"an output of shape {output.shape} does not fit the mask of {case.mask.shape}"
        raise ExportDirectoryError(msg, hint=_HINT)
    if not per_token:
        return output.reshape(len(case.mask), -1)
    return output[case.mask]
