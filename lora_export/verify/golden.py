"""Golden inputs and outputs: a device can check a graph without torch, and so can we later."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.base.errors import ExportDirectoryError
from lora_export.base.files import atomic_write_bytes, resolve_inside, storage_errors
from lora_export.graph.signature import PAST, WRITE_INDICES
from lora_export.verify.inputs import Case

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Golden", "golden_file", "read_golden", "write_golden"]

Array = npt.NDArray[Any]

_LIMIT_BYTES: Final = 1 << 30
_DAMAGED: Final = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    KeyError,
    EOFError,
    MemoryError,
    NotImplementedError,
    zlib.error,
    zipfile.BadZipFile,
)
_NO_EFFECT_KNOWN: Final = -1.0


@dataclass(frozen=True)
class Golden:
    """Inputs, the reference's outputs for them, and the adapter's effect.

    Attributes:
        cases: The inputs.
        expected: The reference's output for each, float32.
        effect: The adapter's effect over all cases of the verification; None for the base.
    """

    cases: Sequence[Case] = field(repr=False)
    expected: Sequence[Array] = field(repr=False)
    effect: float | None


def golden_file(graph: str) -> str:
    """Return the path of a graph's golden file, relative to the export."""
    return f"golden/{graph}.npz"


def write_golden(root: Path, graph: str, golden: Golden) -> str:
    """Write the golden file of a graph; return its SHA-256.

    The buffers of a static cache, in which nothing is written, are left out.

    Keys: ``{i}.input.{name}``, ``{i}.mask``, ``{i}.expected`` for case i; ``count``; ``effect``.
    """
    effect = _NO_EFFECT_KNOWN if golden.effect is None else golden.effect
    arrays: dict[str, Array] = {
        "effect": np.array(effect, np.float64),
        "count": np.array(len(golden.cases), np.int64),
    }
    for index, (case, expected) in enumerate(zip(golden.cases, golden.expected, strict=True)):
        static = WRITE_INDICES in case.feeds
        kept = {n: v for n, v in case.feeds.items() if not (static and n.startswith(PAST))}
        arrays |= {f"{index}.input.{name}": value for name, value in kept.items()}
        arrays[f"{index}.mask"] = case.mask
        arrays[f"{index}.expected"] = expected
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    path = resolve_inside(root, golden_file(graph))
    with storage_errors(str(path)):
        path.parent.mkdir(exist_ok=True)
    return atomic_write_bytes(path, buffer.getvalue())


def read_golden(path: Path) -> Golden:
    """Read a golden file; never unpickles.

    Raises:
        ExportDirectoryError: It is missing or damaged.
    """
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            msg = f"{str(path)!r} is larger than a golden file can be"
            raise ExportDirectoryError(msg)
        with zipfile.ZipFile(path) as members:
            unpacked = sum(member.file_size for member in members.infolist())
        if unpacked > _LIMIT_BYTES:
            msg = f"{str(path)!r} unpacks to {unpacked} bytes"
            raise ExportDirectoryError(msg, hint="The file is damaged or hostile.")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        effect = float(arrays.pop("effect"))
        count = int(arrays.pop("count"))
        if {key.partition(".")[0] for key in arrays} != {str(index) for index in range(count)}:
            msg = f"it does not hold its {count} cases"
            raise ValueError(msg)
        cases = [_case(arrays, index) for index in range(count)]
        expected = [arrays[f"{index}.expected"] for index in range(count)]
    except _DAMAGED as error:
        msg = f"the golden file {str(path)!r} is missing or damaged: {error}"
        raise ExportDirectoryError(msg, hint="Verify against the base: --base.") from error
    return Golden(cases, expected, None if effect == _NO_EFFECT_KNOWN else effect)


def _case(arrays: dict[str, Array], index: int) -> Case:
    start = f"{index}.input."
    feeds = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
    return Case(feeds, arrays[f"{index}.mask"])
