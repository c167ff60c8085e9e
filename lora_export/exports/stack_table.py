"""The stacks of a batched export as a table: what has a stack, and the value of each row."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.dtypes import by_name, cast
from lora_export.core.errors import ExportDirectoryError
from lora_export.core.tensors import iter_blocks, read_all
from lora_export.exports.create import BASE_WEIGHTS
from lora_export.exports.plan import head_parameters
from lora_export.exports.stored_values import parameters_of, stored_values
from lora_export.exports.values import values_of
from lora_export.graph.adapters.batched_graph import (
    LABELS_STACK,
    Stacks,
    stack_a,
    stack_b,
    stack_magnitude,
    stack_of,
)
from lora_export.graph.adapters.swappable_graph import input_a, input_b, input_magnitude
from lora_export.graph.nodes.weight_uses import sizes_of, stored_input_first
from lora_export.graph.spec import tasks
from lora_export.weights.stream import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.adapters.resolve import Update
    from lora_export.core.manifest import Manifest
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor
    from lora_export.exports.new_adapter import NewAdapter
    from lora_export.graph.spec.template import Placement

    Array = npt.NDArray[Any]

__all__ = ["StackTable"]


class StackTable:
    """Every stack: its shape, and where each of its rows comes from.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        rows: The row of each adapter, of new ones too.
        new: The adapters whose rows are computed.
        old: The stacks that there are, of which the other rows are copied.
    """

    def __init__(
        self,
        export_dir: Path,
        manifest: Manifest,
        rows: Mapping[str, int],
        new: Sequence[NewAdapter],
        old: Mapping[str, Tensor],
    ) -> None:
        self._base = stored_values(export_dir, manifest)
        self._missing = set(manifest.base_graph.missing)
        self._old = old
        self._count = max(rows.values(), default=0) + 1
        replaced = {rows[each.name] for each in new}
        self._copied = set(rows.values()) - replaced
        self._updates: defaultdict[str, dict[int, Update]] = defaultdict(dict)
        for each in new:
            for update in each.resolved.updates:
                self._updates[update.parameter.name][rows[each.name]] = update
        heads = head_parameters(tasks.by_name(manifest.base.task))
        parameters = {each.name: each for each in parameters_of(manifest)} if rows else {}
        self._ranks: list[tuple[Parameter, int]] = []
        self._magnitudes: set[str] = set()
        self._values: list[Parameter] = []
        for name, parameter in parameters.items():
            if name not in self._updates and not self._held(name):
                continue
            if rank := self._rank(name):
                self._ranks.append((parameter, rank))
                if self._scaled(name):
                    self._magnitudes.add(name)
            if stack_of(name) in self._old or any(
                _whole(update) for update in self._updates[name].values()
            ):
                self._values.append(parameter)
        self._heads = frozenset(each.name for each in self._values if each.name in heads)
        self._labels = self._width() if self._heads else None

    def graph_values(self, placements: Mapping[str, Placement]) -> Stacks:
        """Return the stacks as values for the graph."""
        return Stacks(
            places=placements,
            rows=self._count,
            ranks=self._ranks,
            magnitudes=frozenset(self._magnitudes),
            values=tuple(self._values),
            labels=self._labels,
            resizable=self._heads,
        )

    def entries(self) -> list[Entry]:
        """Return the stacks to write, row by row."""
        found = [each for parameter, rank in self._ranks for each in self._thin(parameter, rank)]
        for parameter in self._values:
            shape, default = self._value_shape(parameter), partial(self._base_value, parameter)
            name = parameter.name
            found.append(self._entry(stack_of(name), parameter, name, shape, default))
        return found if self._labels is None else [*found, self._labels_entry()]

    def _thin(self, parameter: Parameter, rank: int) -> Iterator[Entry]:
        """Yield the stacks of A, of s·B and, where one has it, of DoRA's factors."""
        inputs, outputs = self._sizes(parameter)
        name = parameter.name
        for stack, value, shape, fill in (
            (stack_a(name), input_a(name), (inputs, rank), 0),
            (stack_b(name), input_b(name), (rank, outputs), 0),
            (stack_magnitude(name), input_magnitude(name), (outputs,), 1),
        ):
            if fill == 0 or name in self._magnitudes:
                default = partial(np.full, shape, fill, np.float32)
                yield self._entry(stack, parameter, value, shape, default)

    # ------------------------------------------------------------------------ shapes

    def _held(self, name: str) -> bool:
        return bool({stack_a(name), stack_of(name)} & set(self._old))

    def _rank(self, name: str) -> int:
        """Return the largest rank of the rows; 0 where none updates the weight."""
        updates = self._updates[name].values()
        ranks = [each.low_rank.a.shape[0] for each in updates if each.low_rank is not None]
        return max([self._copied_rank(name), int(self._scaled(name)), *ranks])

    def _copied_rank(self, name: str) -> int:
        """Return the largest rank of the rows that are copied: behind it both factors are zeros."""
        found = 0
        for stack, other_axis in ((stack_a(name), 0), (stack_b(name), 1)):
            for values in self._copied_rows(stack):
                used = np.flatnonzero((values != 0).any(axis=other_axis))
                found = max(found, int(used[-1]) + 1 if used.size else 0)
        return found

    def _scaled(self, name: str) -> bool:
        """Whether a row has DoRA's factors: in one that has not they are 1."""
        copied = self._copied_rows(stack_magnitude(name))
        return any((values != 1).any() for values in copied) or any(
            update.low_rank is not None and update.low_rank.magnitude is not None
            for update in self._updates[name].values()
        )

    def _width(self) -> int:
        widths = [self._base_width()]
        if (old := self._old.get(LABELS_STACK)) is not None:
            widths += [int(read_all(old)[row].sum()) for row in self._copied if row < old.shape[0]]
        widths += [
            update.saved.tensor.shape[0]
            for name in self._heads
            for update in self._updates[name].values()
            if update.saved is not None
        ]
        return max(widths)

    def _base_width(self) -> int:
        head = next(each for each in self._values if each.name in self._heads)
        return head.shape[0]

    def _sizes(self, parameter: Parameter) -> tuple[int, int]:
        """Return ``(in, out)`` of a matrix; a head that rows bring is as wide as the widest."""
        inputs, outputs = sizes_of(parameter)
        return inputs, (self._labels or outputs) if parameter.name in self._heads else outputs

    def _value_shape(self, parameter: Parameter) -> tuple[int, ...]:
        if len(parameter.shape) > 1:
            return self._sizes(parameter)
        shape = tuple(parameter.shape)
        return (self._labels or shape[0],) if parameter.name in self._heads else shape

    # ------------------------------------------------------------------------ values

    def _entry(
        self,
        stack: str,
        parameter: Parameter,
        input_name: str,
        shape: tuple[int, ...],
        default: Callable[[], Array],
    ) -> Entry:
        """Return a stack of what `input_name` is in a pack."""
        dtype = parameter.stored_dtype

        def blocks() -> Iterator[Array]:
            old = self._old_rows(stack)
            for row in range(self._count):
                before = next(old, None)
                update = self._updates[parameter.name].get(row)
                if update is not None:
                    values = values_of(update, self._base.get(parameter.name))
                    value = values[input_name]() if input_name in values else default()
                    if input_name == parameter.name and input_name in values:
                        value = _input_first(parameter, value)
                elif before is not None and row in self._copied:
                    value = before
                else:
                    value = default()
                yield _padded(cast(np.ascontiguousarray(value), dtype, name=stack), shape)

        return Entry(stack, dtype, (self._count, *shape), blocks)

    def _base_value(self, parameter: Parameter) -> Array:
        """Return the base's value, zeros where it has none."""
        if (tensor := self._base.get(parameter.name)) is None:
            if parameter.name not in self._missing:
                msg = f"{BASE_WEIGHTS} has no tensor {parameter.name!r}"
                raise ExportDirectoryError(msg, hint="The export is damaged; export again.")
            return np.zeros(self._value_shape(parameter), np.float32)
        return _input_first(parameter, read_all(tensor))

    def _labels_entry(self) -> Entry:
        labels = self._labels or 0
        dtype = by_name("bool")
        base = 0 if self._heads & self._missing else self._base_width()

        def blocks() -> Iterator[Array]:
            old = self._old_rows(LABELS_STACK)
            for row in range(self._count):
                before = next(old, None)
                width = base or (self._base_width() if row else 0)
                for name in self._heads:
                    update = self._updates[name].get(row)
                    if update is not None and update.saved is not None:
                        width = update.saved.tensor.shape[0]
                if before is not None and row in self._copied:
                    width = int(before.sum())
                yield (np.arange(labels) < width).astype(dtype.numpy)

        return Entry(LABELS_STACK, dtype, (self._count, labels), blocks)

    def _copied_rows(self, stack: str) -> Iterator[Array]:
        for row, values in enumerate(self._old_rows(stack)):
            if row in self._copied:
                yield values

    def _old_rows(self, stack: str) -> Iterator[Array]:
        tensor = self._old.get(stack)
        if tensor is None:
            return
        count, *shape = tensor.shape
        step = int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize_bytes
        for row, block in enumerate(iter_blocks(tensor, step)):
            if row < count:
                values = np.frombuffer(block, tensor.dtype.numpy).reshape(shape)
                yield values.copy()  # the block's memory is read into anew


def _whole(update: Update) -> bool:
    return update.saved is not None or update.added is not None


def _input_first(parameter: Parameter, stored: Array) -> Array:
    """Return a value in the graph's layout as ``[in, out]``; a vector as it is."""
    return stored if stored.ndim == 1 or stored_input_first(parameter) else stored.T


def _padded(values: Array, shape: tuple[int, ...]) -> Array:
    """Return `values` with zeros behind them, or cut to what is not padding, up to `shape`."""
    if values.shape == shape:
        return values
    found = np.zeros(shape, values.dtype)
    common = tuple(slice(0, min(pair)) for pair in zip(values.shape, shape, strict=True))
    found[common] = values[common]
    return found
