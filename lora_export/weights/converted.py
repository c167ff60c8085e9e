"""A checkpoint's tensors as the model holds them: renamed, stacked, split; nothing is read.

Operations on leading axes leave the bytes of a C-ordered tensor together: what transformers makes
by them is pieces of the checkpoint's tensors, one after the other.

    stack:0                  E tensors [out, in]             → [E, out, in]
    stack:0, concatenate:1   E tensors of each of n sources  → [E, out₁ + … + outₙ, in]
    concatenate:0            one tensor of each source       → [out₁ + … + outₙ, …]
    chunk:0                  one tensor [n·out, …]           → n tensors [out, …]
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import CheckpointError, UnsupportedError
from lora_export.core.name_conversions import NewName, new_name
from lora_export.core.tensors import nbytes, same_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_export.core.dtypes import DType
    from lora_export.core.name_conversions import Conversion
    from lora_export.core.tensors import Tensor

__all__ = ["PiecedTensor", "as_loaded"]

_STACK: Final = ("stack:0",)
_STACK_WIDE: Final = ("stack:0", "concatenate:1")
_CONCATENATE: Final = ("concatenate:0",)
_CHUNK: Final = ("chunk:0",)
_HINT: Final = (
    "Load it in transformers and save it as save_pretrained(FOLDER, save_original_format=False); "
    "that folder can be exported."
)


@dataclass(frozen=True)
class PiecedTensor:
    """A tensor whose bytes are those of others, one after the other.

    Attributes:
        name: What the model calls it.
        shape: Its shape.
        pieces: Of each: the tensor, the first byte, the number of bytes.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[Tensor, int, int], ...] = field(repr=False)

    @property
    def dtype(self) -> DType:
        """The dtype that all pieces have."""
        return self.pieces[0][0].dtype

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the tensor's bytes from `offset_bytes` on."""
        *starts, _ = accumulate((count for _, _, count in self.pieces), initial=0)
        at = bisect_right(starts, offset_bytes) - 1
        done = 0
        while done < len(buffer):
            tensor, first, count = self.pieces[at]
            skipped = offset_bytes + done - starts[at]
            part = buffer[done : done + count - skipped]
            tensor.read_into(part, first + skipped)
            done += len(part)
            at += 1


@dataclass(frozen=True)
class _Part:
    """A tensor of the checkpoint, and which source of its converter it is."""

    source: int
    tensor: Tensor


def as_loaded(
    tensors: Mapping[str, Tensor], conversions: Sequence[Conversion], known: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Return the checkpoint's tensors by the names that the model gives them.

    What becomes no parameter of the model keeps its name.

    Args:
        tensors: By the checkpoint's names.
        conversions: The model's rules.
        known: Whether the model has a parameter of a name.

    Raises:
        CheckpointError: Two tensors for one parameter, or tensors that do not fit together.
        UnsupportedError: An operation that is not known.
    """
    loaded: dict[str, Tensor] = {}
    parts: defaultdict[tuple[str, Conversion], list[_Part]] = defaultdict(list)
    for name in sorted(tensors, key=_in_order):
        new = new_name(name, conversions)
        if not any(map(known, new.names)):
            _put(loaded, name, tensors[name])
        elif new.converter is None:
            _put(loaded, new.name, tensors[name])
        else:
            parts[new.name, new.converter].append(_Part(new.source, tensors[name]))
    for (name, rule), collected in parts.items():
        for made in _converted(name, rule, collected):
            _put(loaded, made.name, made)
    return loaded


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts expert 10 behind expert 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _put(loaded: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    other = loaded.setdefault(name, tensor)
    if other is not tensor and not same_values(other, tensor):
        msg = (
            f"tensors {other.name!r} and {tensor.name!r} of the base are both {name!r} in the model"
        )
        raise CheckpointError(msg, hint="They differ: save the checkpoint again.")


def _converted(name: str, rule: Conversion, parts: Sequence[_Part]) -> list[PiecedTensor]:
    """Return the tensors that the rule makes of those that it collected."""
    by_source: defaultdict[int, list[Tensor]] = defaultdict(list)
    for part in parts:
        by_source[part.source].append(part.tensor)
    groups = [by_source[source] for source in sorted(by_source)]
    if rule.operations == _CHUNK:
        return _chunks(NewName(name, rule).names, groups[0][0])
    if rule.operations == _CONCATENATE:
        return [_joined(name, [tensor for group in groups for tensor in group])]
    if rule.operations in {_STACK, _STACK_WIDE}:
        return [_stacked(name, groups)]
    done = " and ".join(each.partition(":")[0] for each in rule.operations)
    msg = (
        f"transformers makes {name!r} of {parts[0].tensor.name!r} while it loads the base, "
        f"by {done}, which is not known here"
    )
    raise UnsupportedError(msg, hint=_HINT)


def _chunks(names: Sequence[str], tensor: Tensor) -> list[PiecedTensor]:
    count = len(names)
    if not tensor.shape or tensor.shape[0] % count:
        msg = f"tensor {tensor.name!r} of the base, {list(tensor.shape)}, is not {count} alike"
        raise CheckpointError(msg, hint="Config and weights are not of one model.")
    shape = (tensor.shape[0] // count, *tensor.shape[1:])
    size = nbytes(tensor) // count
    return [
        PiecedTensor(name, shape, ((tensor, at * size, size),)) for at, name in enumerate(names)
    ]


def _joined(name: str, tensors: Sequence[Tensor]) -> PiecedTensor:
    _require_alike(name, tensors, first_axis=1)
    shape = (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])
    return PiecedTensor(name, shape, tuple((each, 0, nbytes(each)) for each in tensors))


def _stacked(name: str, groups: Sequence[Sequence[Tensor]]) -> PiecedTensor:
    """Return tensor i of each group one below the other, for each i."""
    for group in groups:
        _require_alike(name, group)
        if len(group) != len(groups[0]):
            msg = f"{name!r} is stacked of {len(groups[0])} tensors {groups[0][0].name!r} and so on"
            msg += f", but the base has {len(group)} like {group[0].name!r}"
            raise CheckpointError(msg, hint="The checkpoint is incomplete: copy it again.")
    rows = [_joined(name, row) for row in zip(*groups, strict=True)]
    pieces = tuple(piece for row in rows for piece in row.pieces)
    return PiecedTensor(name, (len(rows), *rows[0].shape), pieces)


def _require_alike(name: str, tensors: Sequence[Tensor], *, first_axis: int = 0) -> None:
    first = tensors[0]
    for other in tensors:
        unlike = other.dtype != first.dtype or other.shape[first_axis:] != first.shape[first_axis:]
        if unlike or not other.shape:
            msg = (
                f"{name!r} is made of {first.name!r}, {first.dtype.name} {list(first.shape)}, and "
                f"{other.name!r}, {other.dtype.name} {list(other.shape)}: they do not fit together"
            )
            raise CheckpointError(msg, hint="Config and weights are not of one model.")
