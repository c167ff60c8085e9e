"""Batched exports: one graph with the stacks of all adapters, and for each row its adapter.

    batched.onnx                        the graph; reads ``adapter_ids``
    weights/batched-<hash>.safetensors  the stacks, one row for each adapter; row 0 is the base

An adapter keeps its row as long as it is there, and the row of one that was removed is the base
until another takes it. A change writes a stack file of another name and a small graph: the stacks
that stay are copied row by row, and the base's weights are not touched. The graph is put beside the
old one before the manifest names it, and takes its place afterwards; see `finish_change`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.base.dtypes import by_name, cast
from lora_export.base.errors import AdapterError, ExportDirectoryError
from lora_export.base.files import (
    resolve_inside,
    sha256_of_file,
    staging_folder,
    storage_errors,
    sync_folder,
    write_synced,
)
from lora_export.base.manifest import (
    CombinedRecord,
    GraphRecord,
    Manifest,
    RowRecord,
    edit_manifest,
    write_manifest,
)
from lora_export.base.safetensors_file import read_header
from lora_export.base.tensors import iter_blocks, read_all
from lora_export.exports.create import BASE_WEIGHTS, weights_metadata
from lora_export.exports.extend import (
    adapter_record,
    forget_adapter,
    parameters_of,
    refuse_taken,
    sweep,
)
from lora_export.exports.packs import origin_of, refuse_unswappable, values_of
from lora_export.exports.plan import head_parameters
from lora_export.graph import tasks
from lora_export.graph.batched import (
    LABELS_STACK,
    Stacks,
    stack_a,
    stack_b,
    stack_magnitude,
    stack_of,
    with_stacks,
)
from lora_export.graph.lora import input_a, input_b, input_magnitude
from lora_export.graph.template import Placement
from lora_export.graph.uses import INPUT_FIRST_TYPES
from lora_export.weights.stream import Entry, write_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.adapters.resolve import Resolved, Update
    from lora_export.base.parameters import Parameter
    from lora_export.base.tensors import Tensor

    Array = npt.NDArray[Any]

__all__ = ["BATCHED", "NewAdapter", "change_rows", "finish_change", "is_batched", "width_of"]

BATCHED: Final = "batched"
_GRAPH_FILE: Final = "batched.onnx"
_NEXT_FILE: Final = "batched.next.onnx"


@dataclass(frozen=True)
class NewAdapter:
    """An adapter to put into the stacks.

    Attributes:
        resolved: The adapter, resolved against the export's parameters.
        source: Where it is, as the manifest records it.
        labels: Names of the head's classes.
        combined: What it was made of, where it was.
    """

    resolved: Resolved
    source: str
    labels: Sequence[str] | None = None
    combined: CombinedRecord | None = None

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.resolved.adapter.name


def is_batched(manifest: Manifest) -> bool:
    """Whether adapters of the export are rows of one graph."""
    return BATCHED in manifest.graphs


def width_of(root: Path, manifest: Manifest, row: int) -> int | None:
    """Return how many logits a row has; None where all rows have the graph's."""
    for file in manifest.graphs[BATCHED].weights:
        if file != BASE_WEIGHTS:
            labels = read_header(resolve_inside(root, file))[0].get(LABELS_STACK)
            return None if labels is None else int(read_all(labels)[row].sum())
    return None


def finish_change(root: Path, manifest: Manifest) -> None:
    """Put the batched graph that the manifest names into its place, where a change was cut short.

    Raises:
        StorageError: The disk refuses.
    """
    if not is_batched(manifest):
        return
    waiting = resolve_inside(root, _NEXT_FILE)
    wanted = manifest.graphs[BATCHED].sha256
    if waiting.is_file() and sha256_of_file(waiting) == wanted:
        with storage_errors(_GRAPH_FILE):
            waiting.replace(resolve_inside(root, _GRAPH_FILE))
        sync_folder(root)


def change_rows(
    root: Path,
    new: Sequence[NewAdapter] = (),
    *,
    gone: str | None = None,
    replace: bool = False,
) -> Manifest:
    """Add adapters to the stacks of an export, or take one out; the first call makes the graph.

    Args:
        root: The export directory.
        new: The adapters to add, all or none.
        gone: The adapter to take out.
        replace: Whether adapters of the same names may be replaced; they keep their rows.

    Raises:
        AdapterError: A name is taken or unknown, or a tensor of an adapter is damaged.
        UnsupportedError: An adapter changes something that cannot differ between rows.
        StorageError: The disk refuses; the export is as it was.
    """
    for each in new:
        for update in each.resolved.updates:
            refuse_unswappable(update)
    with edit_manifest(root) as manifest:
        finish_change(root, manifest)
        if gone is not None and gone not in manifest.adapters:
            msg = f"the export {str(root)!r} holds no adapter {gone!r}"
            held = ", ".join(sorted(manifest.adapters)) or "none"
            raise AdapterError(msg, hint=f"It holds: {held}.")
        kept = manifest
        if gone is not None:
            kept = forget_adapter(kept, gone)
        rows = {name: each.row.row for name, each in kept.adapters.items() if each.row is not None}
        for each in new:
            refuse_taken(kept, each.name, replace=replace)
            free = next(row for row in range(1, len(rows) + 2) if row not in rows.values())
            rows.setdefault(each.name, free)
        table = _Table(root, manifest, rows, new)
        updated = _write(root, kept, rows, new, table)
        for file in set(manifest.files) - set(updated.files):
            resolve_inside(root, file).unlink(missing_ok=True)
        for name in {gone, *(each.name for each in new)} - {None}:
            sweep(root, updated, str(name))
    return updated


def _write(
    root: Path,
    kept: Manifest,
    rows: Mapping[str, int],
    new: Sequence[NewAdapter],
    table: _Table,
) -> Manifest:
    """Write stacks and graph, then the manifest; return it."""
    base = kept.graphs["base"]
    old = kept.graphs.get(BATCHED)
    with staging_folder(root, "add") as staging:
        entries = table.entries()
        files: dict[str, str] = {}
        placements: dict[str, Placement] = {}
        if entries:
            metadata = {**weights_metadata(BATCHED), "base_fingerprint": kept.base.fingerprint}
            written = write_weights(staging / "stacks", entries, metadata=metadata)
            stack_file = f"weights/batched-{written.sha256[:12]}.safetensors"
            files[stack_file] = written.sha256
            placements = {
                each.name: Placement(stack_file, *written.offsets[each.name]) for each in entries
            }
        graph = with_stacks(
            resolve_inside(root, base.onnx).read_bytes(), table.described(placements)
        )
        digest = write_synced(staging / _NEXT_FILE, graph)
        with storage_errors(str(root)):
            for file in files:
                (staging / "stacks").replace(resolve_inside(root, file))
            sync_folder(root / "weights")
            (staging / _NEXT_FILE).replace(resolve_inside(root, _NEXT_FILE))
        sync_folder(root)
    gone = set(old.weights) - {BASE_WEIGHTS} - set(files) if old is not None else set()
    record = GraphRecord(
        mode=BATCHED,
        onnx=_GRAPH_FILE,
        weights=[BASE_WEIGHTS, *files],
        opset=base.opset,
        sha256=digest,
        missing=base.missing,
    )
    adapters = {
        name: each.model_copy(
            update={"row": each.row and each.row.model_copy(update={"verification": "unverified"})}
        )
        for name, each in kept.adapters.items()
    }
    for each in new:
        adapters[each.name] = adapter_record(
            kept, each.resolved, source=each.source, origin=origin_of(kept, each.resolved),
            labels=each.labels, combined=each.combined,
        ).model_copy(update={"row": RowRecord(row=rows[each.name])})  # fmt: skip
    golden = {f"golden/{each.name}.npz" for each in new}
    updated = kept.model_copy(
        update={
            "adapters": adapters,
            "graphs": {**kept.graphs, BATCHED: record},
            "files": {
                **{file: sha for file, sha in kept.files.items() if file not in gone | golden},
                **files,
                _GRAPH_FILE: digest,
            },
        }
    )
    write_manifest(root, updated)
    finish_change(root, updated)
    return updated


class _Table:
    """Every stack: its shape, and where each of its rows comes from."""

    def __init__(
        self, root: Path, manifest: Manifest, rows: Mapping[str, int], new: Sequence[NewAdapter]
    ) -> None:
        self._base, _ = read_header(resolve_inside(root, BASE_WEIGHTS))
        self._missing = set(manifest.graphs["base"].missing)
        self._old = _old_stacks(root, manifest)
        self._count = max(rows.values(), default=0) + 1
        replaced = {rows[each.name] for each in new}
        self._copied = set(rows.values()) - replaced
        self._updates: dict[tuple[str, int], Update] = {
            (update.parameter.name, rows[each.name]): update
            for each in new
            for update in each.resolved.updates
        }
        heads = head_parameters(tasks.by_name(manifest.base.task))
        parameters = {each.name: each for each in parameters_of(manifest)} if rows else {}
        touched = {name for name, _ in self._updates}
        self._ranks: list[tuple[Parameter, int]] = []
        self._magnitudes: set[str] = set()
        self._values: list[Parameter] = []
        for name, parameter in parameters.items():
            if name not in touched and not self._held(name):
                continue
            if rank := self._rank(name):
                self._ranks.append((parameter, rank))
                if self._scaled(name):
                    self._magnitudes.add(name)
            if stack_of(name) in self._old or any(
                _whole(update) for update in self._of(name).values()
            ):
                self._values.append(parameter)
        self._heads = frozenset(each.name for each in self._values if each.name in heads)
        self._labels = self._width() if self._heads else None

    def described(self, placements: Mapping[str, Placement]) -> Stacks:
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
        found = [each for parameter, rank in self._ranks for each in self._thin(parameter, rank)]
        for parameter in self._values:
            shape, default = self._value_shape(parameter), partial(self._base_value, parameter)
            name = parameter.name
            found.append(self._entry(stack_of(name), parameter, name, shape, default))
        return found if self._labels is None else [*found, self._labels_entry()]

    def _thin(self, parameter: Parameter, rank: int) -> Iterator[Entry]:
        """Yield the stacks of A, of s·B and, where one has it, of DoRA's factors."""
        inputs, outputs = _sizes(parameter)
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

    def _of(self, name: str) -> dict[int, Update]:
        return {row: update for (each, row), update in self._updates.items() if each == name}

    def _held(self, name: str) -> bool:
        return bool({stack_a(name), stack_of(name)} & set(self._old))

    def _rank(self, name: str) -> int:
        old = self._old.get(stack_a(name))
        ranks = [0 if old is None else old.shape[-1]]
        updates = self._of(name).values()
        ranks += [each.low_rank.a.shape[0] for each in updates if each.low_rank is not None]
        return max(ranks)

    def _scaled(self, name: str) -> bool:
        return stack_magnitude(name) in self._old or any(
            update.low_rank is not None and update.low_rank.magnitude is not None
            for update in self._of(name).values()
        )

    def _width(self) -> int:
        widths = [self._base_width()]
        if (old := self._old.get(LABELS_STACK)) is not None:
            widths += [int(read_all(old)[row].sum()) for row in self._copied if row < old.shape[0]]
        widths += [
            update.saved.tensor.shape[0]
            for (name, _), update in self._updates.items()
            if name in self._heads and update.saved is not None
        ]
        return max(widths)

    def _base_width(self) -> int:
        head = next(each for each in self._values if each.name in self._heads)
        return head.shape[0]

    def _value_shape(self, parameter: Parameter) -> tuple[int, ...]:
        shape = _sizes(parameter) if len(parameter.shape) > 1 else tuple(parameter.shape)
        if parameter.name in self._heads and self._labels is not None:
            shape = (*shape[:-1], self._labels)
        return shape

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
                update = self._updates.get((parameter.name, row))
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
                    update = self._updates.get((name, row))
                    if update is not None and update.saved is not None:
                        width = update.saved.tensor.shape[0]
                if before is not None and row in self._copied:
                    width = int(before.sum())
                yield (np.arange(labels) < width).astype(dtype.numpy)

        return Entry(LABELS_STACK, dtype, (self._count, labels), blocks)

    def _old_rows(self, stack: str) -> Iterator[Array]:
        tensor = self._old.get(stack)
        if tensor is None:
            return
        count, *shape = tensor.shape
        step = int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize_bytes
        for row, block in enumerate(iter_blocks(tensor, step)):
            if row < count:
                yield (
                    np.frombuffer(block, tensor.dtype.numpy).reshape(shape).copy()
                )  # read into anew


def _old_stacks(root: Path, manifest: Manifest) -> Mapping[str, Tensor]:
    """Return the stacks that there are."""
    record = manifest.graphs.get(BATCHED)
    for file in record.weights if record is not None else ():
        if file != BASE_WEIGHTS:
            path = resolve_inside(root, file)
            if not path.is_file() or sha256_of_file(path) != manifest.files.get(file):
                msg = f"the export {str(root)!r} is not what was written: {file}"
                raise ExportDirectoryError(msg, hint="Copy the directory again, or export again.")
            return read_header(path)[0]
    return {}


def _whole(update: Update) -> bool:
    return update.saved is not None or update.added is not None


def _sizes(parameter: Parameter) -> tuple[int, ...]:
    """Return ``(in, out)`` of a matrix."""
    input_first = parameter.module_type in INPUT_FIRST_TYPES
    return tuple(parameter.shape if input_first else parameter.shape[::-1])


def _input_first(parameter: Parameter, stored: Array) -> Array:
    """Return a value in the graph's layout as ``[in, out]``; a vector as it is."""
    if (parameter.module_type in INPUT_FIRST_TYPES) != parameter.transposed:
        return stored
    return stored.T


def _padded(values: Array, shape: tuple[int, ...]) -> Array:
    """Return `values` with zeros behind them, or cut to what is not padding, up to `shape`."""
    if values.shape == shape:
        return values
    found = np.zeros(shape, values.dtype)
    common = tuple(slice(0, min(pair)) for pair in zip(values.shape, shape, strict=True))
    found[common] = values[common]
    return found
