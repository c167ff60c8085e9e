"""A checkpoint with an adapter merged in, as the list of tensors to write.

    changed      base block + s·B A → cast       observed (fidelity), hashed
    cast         base block → cast               hashed          (only if another dtype is wanted)
    unchanged    the base's bytes                hashed once, as they are read

Everything of the base is hashed while it is read for the merge, so that its fingerprint costs no
second pass.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import by_name
from lora_export.core.tensors import iter_blocks, nbytes
from lora_export.weights.fidelity import FidelityMeter, is_lossy
from lora_export.weights.stream import Entry, base_entry, merged_entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.adapters.resolve import Resolved, Update
    from lora_export.core.dtypes import DType
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = ["MergePlan", "measure_lossy", "plan_merge"]

BLOCK_BYTES: Final = 1 << 20
"""A block and what is computed from it stay in a processor's own cache."""


class HashedTensor:
    """A tensor whose bytes are hashed as they are read from the first to the last."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._digest = hashlib.sha256()
        self._position = 0

    @property
    def name(self) -> str:
        """The name in the file it comes from."""
        return self._tensor.name

    @property
    def dtype(self) -> DType:
        """The stored dtype."""
        return self._tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        return self._tensor.shape

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` from `offset_bytes` on; what follows what was hashed is hashed."""
        self._tensor.read_into(buffer, offset_bytes)
        if offset_bytes == self._position:
            self._digest.update(buffer)
            self._position += len(buffer)

    def hexdigest(self) -> str:
        """Return the SHA-256 of all bytes; those that nobody asked for in order are read now."""
        if self._position != nbytes(self._tensor):
            self._digest = hashlib.sha256()
            for block in iter_blocks(self._tensor):
                self._digest.update(block)
            self._position = nbytes(self._tensor)
        return self._digest.hexdigest()


@dataclass(frozen=True)
class MergePlan:
    """The tensors that will be written.

    Attributes:
        entries: The tensors under their names in the merged checkpoint.
        sources: The base's tensors by their own names, hashed as they are read.
        unchanged: Merged name → the base's name, for those that are copied byte for byte.
        meters: The fidelity of each tensor with a low-rank update, by its merged name.
    """

    entries: tuple[Entry, ...]
    sources: Mapping[str, HashedTensor] = field(repr=False)
    unchanged: Mapping[str, str] = field(repr=False)
    meters: Mapping[str, FidelityMeter] = field(repr=False)

    @property
    def hashed(self) -> frozenset[str]:
        """The tensors whose written bytes have a hash of their own."""
        return frozenset(entry.name for entry in self.entries) - self.unchanged.keys()


def plan_merge(
    tensors: Mapping[str, Tensor],
    parameters: Sequence[Parameter],
    resolved: Resolved | None,
    *,
    dtype: str | None = None,
    prefix: str = "",
    float32: frozenset[str] = frozenset(),
    copies: Mapping[str, str] | None = None,
) -> MergePlan:
    """Return the tensors to write.

    Args:
        tensors: The base's tensors.
        parameters: A parameter for each of them, and for what the adapter brings.
        resolved: The adapter, resolved against `parameters`; None to write the base as it is.
        dtype: The dtype of all floating tensors; each keeps its own where it is None.
        prefix: Put before the names of the base's tensors.
        float32: Parameters to store in float32 whatever `dtype` says.
        copies: Parameters that the base stores under another name, with that name.
    """
    copies = copies or {}
    updates = {update.parameter.name: update for update in resolved.updates} if resolved else {}
    sources = {name: HashedTensor(tensor) for name, tensor in tensors.items() if name not in copies}
    entries: list[Entry] = []
    unchanged: dict[str, str] = {}
    meters: dict[str, FidelityMeter] = {}
    for parameter in parameters:
        origin = copies.get(parameter.name, parameter.name)
        source = sources.get(origin)
        stored = _stored_as(parameter, "float32" if parameter.name in float32 else dtype)
        name = prefix + parameter.name if parameter.name in sources else parameter.name
        update = updates.get(parameter.name)
        if update is not None:
            entry, meter = _changed_entry(replace(update, parameter=stored), source)
            if meter is not None:
                meters[name] = meter
        elif source is not None and stored.dtype != source.dtype.name:
            entry = base_entry(stored, source, block_bytes=BLOCK_BYTES)
        else:
            assert source is not None  # noqa: S101  (what only the adapter has, it updates)
            entry = _copied_entry(source)
            unchanged[name] = origin
        entries.append(replace(entry, name=name))
    return MergePlan(tuple(entries), sources, unchanged, meters)


def _stored_as(parameter: Parameter, dtype: str | None) -> Parameter:
    """Return `parameter` in the dtype that it is written in; integers stay what they are."""
    if dtype is None or not parameter.stored_dtype.floating:
        return parameter
    return replace(parameter, dtype=by_name(dtype).name)


def _changed_entry(update: Update, source: Tensor | None) -> tuple[Entry, FidelityMeter | None]:
    measured = update.low_rank is not None or update.computed is not None
    meter = FidelityMeter(update.parameter, update.low_rank) if measured else None
    entry = merged_entry(
        update, source, base_is_stored=False, block_bytes=BLOCK_BYTES, observe=meter
    )
    return entry, meter


def _copied_entry(tensor: Tensor) -> Entry:
    def blocks() -> Iterator[Any]:
        for block in iter_blocks(tensor, BLOCK_BYTES):
            yield np.frombuffer(block, np.uint8)

    return Entry(tensor.name, tensor.dtype, tensor.shape, blocks)


def measure_lossy(plan: MergePlan) -> frozenset[str]:
    """Merge without writing; return the tensors that lose more than the table allows."""
    lossy: set[str] = set()
    for entry in plan.entries:
        meter = plan.meters.get(entry.name)
        if meter is None:
            continue
        for _ in entry.blocks():
            pass
        if is_lossy(meter.result(), entry.dtype.name):
            lossy.add(entry.name)
    return frozenset(lossy)
