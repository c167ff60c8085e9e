"""The merging writer: blocks are read, merged in float32, cast, laid out, written and forgotten.

    base weights     checkpoint tensor → cast → transpose      → weights/base.safetensors
    merged weights   base block + s·B A → cast (→ transpose)   → weights/<adapter>.safetensors

A block is written and hashed while the next is computed, and the disk stores what is written
meanwhile. Memory is bounded by a few blocks of
`lora_export.weights.rows.BLOCK_BYTES` and the adapter's own factors.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from lora_export.adapters.change import change_of
from lora_export.adapters.delta import not_finite_error
from lora_export.core.dtypes import DTYPES, Float32Array, cast, require_finite, to_float32
from lora_export.core.errors import InputError, LoraExportError
from lora_export.core.files import storage_errors
from lora_export.core.safetensors_file import encode_header
from lora_export.core.tensors import MatrixTensor, bytes_of
from lora_export.weights.rows import read_block, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from lora_export.adapters.resolve import Update
    from lora_export.core.dtypes import DType
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = [
    "Entry",
    "Observer",
    "Written",
    "base_entry",
    "copied_entry",
    "file_order",
    "merged_entry",
    "stored_entry",
    "write_weights",
    "zero_entry",
]

_QUEUED: Final = 2
_SYNCED_BYTES: Final = 1 << 26
"""How much is written before the disk is told to store it: it works while blocks are computed."""
_MATRIX: Final = 2
_ALIGNED: Final = 8

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """One tensor to write: what it is, and its rows in order, in blocks.

    Attributes:
        name: Its name in the file.
        dtype: Its dtype in the file.
        shape: Its shape in the file.
        blocks: Yields its values.
        after: The entry that is written just before it, from whose values its own follow.
        graph_shape: Its shape in a graph, where that is another: int4, which files hold packed.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Array]]
    after: str | None = None
    graph_shape: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes."""
        return prod(self.shape) * self.dtype.itemsize_bytes


@dataclass(frozen=True)
class Written:
    """A weight file: its hash, size, and the place of each tensor in it."""

    sha256: str
    size_bytes: int
    offsets: dict[str, tuple[int, int]]


def write_weights(
    path: Path,
    entries: Sequence[Entry],
    *,
    metadata: dict[str, str],
    advance: Callable[[int], None] | None = None,
) -> Written:
    """Write `entries` to a new safetensors file, synced; larger dtypes first, then by name.

    Every value is aligned to its dtype: see `file_order`.

    Raises:
        StorageError: The disk refuses; the unfinished file is removed.
    """
    ordered = file_order(entries)
    header, starts = encode_header([(e.name, e.dtype, e.shape) for e in ordered], metadata)
    with storage_errors(str(path)):
        stream = path.open("xb", buffering=0)
    try:
        with storage_errors(str(path)), stream:
            with _Sink(stream.fileno()) as sink:
                sink.put(np.frombuffer(header, np.uint8))
                for entry in ordered:
                    done = 0
                    for block in entry.blocks():
                        sink.put(block)
                        done += block.nbytes
                        if advance is not None:
                            advance(block.nbytes)
                    _require_whole(entry, done)
            os.fsync(stream.fileno())
            size_bytes = stream.tell()
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    offsets = {entry.name: (starts[entry.name], entry.nbytes) for entry in ordered}
    return Written(sink.hexdigest(), size_bytes, offsets)


def file_order(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries in the order of the file: larger dtypes first, then by name.

    An entry that follows another stands behind it. Single bytes of a number that would shift what
    follows them stand last.
    """
    by_name = {entry.name: entry for entry in entries}

    def key(entry: Entry) -> tuple[int, bool, str, bool]:
        leader = by_name[entry.after] if entry.after is not None else entry
        size = leader.dtype.itemsize_bytes
        shifts = size == 1 and leader.nbytes % _ALIGNED != 0
        return -size, shifts, leader.name, entry.after is not None

    return sorted(entries, key=key)


def _require_whole(entry: Entry, done_bytes: int) -> None:
    """Guard the layout: a tensor that is too long or short would shift all that follow."""
    if done_bytes != entry.nbytes:
        msg = f"{entry.name!r} gave {done_bytes} bytes instead of {entry.nbytes}"
        raise LoraExportError(msg)


class _Sink:
    """Writes and hashes blocks in order, in a thread of its own, while the next is computed.

    At most `_QUEUED` blocks wait; an error of the thread is raised by the next call.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1)
        self._queue: deque[Future[None]] = deque()
        self._syncer = ThreadPoolExecutor(1)
        self._synced: Future[None] | None = None
        self._unsynced_bytes = 0

    def put(self, block: Array) -> None:
        """Take a block, which the caller must not change any more."""
        self._queue.append(self._pool.submit(self._consume, block))
        if len(self._queue) > _QUEUED:
            self._queue.popleft().result()

    def hexdigest(self) -> str:
        """Return the hash of everything that was put."""
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        """Return the sink."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is queued; after an error, forget it."""
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        self._syncer.shutdown(wait=True)
        if kind is None:
            for future in self._queue:
                future.result()
            if self._synced is not None:
                self._synced.result()

    def _consume(self, block: Array) -> None:
        raw = bytes_of(np.ascontiguousarray(block))
        done = 0
        while done < len(raw):
            done += os.write(self._descriptor, raw[done:])
        self._digest.update(raw)
        self._unsynced_bytes += done
        if self._unsynced_bytes >= _SYNCED_BYTES:
            self._sync()

    def _sync(self) -> None:
        """Begin to sync what is written, unless the disk is still at it; raise where it failed."""
        if self._synced is not None:
            if not self._synced.done():
                return
            self._synced.result()
        self._unsynced_bytes = 0
        self._synced = self._syncer.submit(os.fsync, self._descriptor)


class Observer(Protocol):
    """Watches a merge block by block; see ``weights/fidelity.py``."""

    def __call__(self, start: int, base: Array, merged: Array, stored: Array) -> None:
        """Take rows from `start` on: W0 and the merged value in float32, and what is stored."""


def base_entry(parameter: Parameter, tensor: Tensor, *, block_bytes: int | None = None) -> Entry:
    """Return the unadapted value of `parameter`, in the graph's dtype and layout."""

    def blocks() -> Iterator[Array]:
        for rows, _ in read_rows(tensor, transposed=parameter.transposed, block_bytes=block_bytes):
            yield cast(rows, parameter.stored_dtype, name=parameter.name)

    return Entry(parameter.name, parameter.stored_dtype, parameter.stored_shape, blocks)


def stored_entry(tensor: Tensor, parameter: Parameter, *, transposed: bool) -> Entry:
    """Return a value that an export holds, in the dtype of `parameter` and perhaps transposed.

    Args:
        tensor: The value as it is stored; its shape may be another than the parameter's.
        parameter: What it is a value of.
        transposed: Whether the parameter's layout is the other one.
    """

    def blocks() -> Iterator[Array]:
        for rows, _ in read_rows(tensor, transposed=transposed):
            yield cast(rows, parameter.stored_dtype, name=parameter.name)

    shape = tensor.shape[::-1] if transposed else tensor.shape
    return Entry(parameter.name, parameter.stored_dtype, shape, blocks)


def copied_entry(name: str, tensor: Tensor) -> Entry:
    """Return `tensor` as it is, under another name."""

    def blocks() -> Iterator[Array]:
        for rows, _ in read_rows(tensor, transposed=False):
            yield rows

    return Entry(name, tensor.dtype, tensor.shape, blocks)


def zero_entry(parameter: Parameter) -> Entry:
    """Return zeros in place of a parameter that only adapters have."""

    def blocks() -> Iterator[Array]:
        yield np.zeros(parameter.stored_shape, parameter.stored_dtype.numpy)

    return Entry(parameter.name, parameter.stored_dtype, parameter.stored_shape, blocks)


def merged_entry(
    update: Update,
    base: Tensor | None,
    *,
    base_is_stored: bool,
    block_bytes: int | None = None,
    observe: Observer | None = None,
) -> Entry:
    """Return the merged value of one parameter: ``W0 + s·B A``, or the adapter's own value.

    Args:
        update: What the adapter does to the parameter.
        base: The unadapted value; unused where the adapter carries the parameter whole.
        base_is_stored: Whether `base` already has the graph's layout.
        block_bytes: How much of the base is read at once.
        observe: Told about each block of a low-rank update: the value that it is added to,
            trained rows included, and the result.
    """
    parameter = update.parameter
    if not update.changes_value:
        return _saved_entry(update)
    if update.saved is not None:  # PEFT saved the weight that it updates: s·B A is added to that
        base, base_is_stored = update.saved.tensor, False
    if base is None:
        msg = f"the base has no value for {parameter.name!r}, which the adapter updates"
        raise InputError(msg, hint="Is this the right base?")
    if update.padded:
        return _padded_entry(parameter, base)
    bare = update.low_rank is not None and update.low_rank.name is not None
    tensor = MatrixTensor(base) if bare and len(base.shape) > _MATRIX else base
    transpose_on_read = parameter.transposed and not base_is_stored

    def exact() -> Iterator[tuple[Float32Array, int]]:
        for rows, start in read_rows(tensor, transposed=transpose_on_read, block_bytes=block_bytes):
            yield to_float32(rows), start

    def blocks() -> Iterator[Array]:
        change = change_of(update, transposed=parameter.transposed).measured(exact)
        for rows, start in exact():
            before = change.basis(rows, start) if observe is not None else rows
            merged = change.apply(rows, start)
            require_finite(merged, before, DTYPES["float32"], name=parameter.name)
            stored = cast(merged, parameter.stored_dtype, name=parameter.name)
            if observe is not None:
                observe(start, before, merged, stored)
            yield stored

    return Entry(parameter.name, parameter.stored_dtype, parameter.stored_shape, blocks)


def _saved_entry(update: Update) -> Entry:
    parameter, saved = update.parameter, update.saved
    assert saved is not None  # noqa: S101  (by the caller)
    shape = saved.tensor.shape
    stored_shape = shape[::-1] if parameter.transposed else shape

    def blocks() -> Iterator[Array]:
        for rows, _ in read_rows(saved.tensor, transposed=parameter.transposed):
            if not bool(np.isfinite(rows).all()):
                raise not_finite_error(saved.tensor)
            yield cast(rows, parameter.stored_dtype, name=parameter.name)

    return Entry(parameter.name, parameter.stored_dtype, stored_shape, blocks)


def _padded_entry(parameter: Parameter, base: Tensor) -> Entry:
    """Return the base's value, the last axis cut or filled with zeros to the parameter's shape."""

    def blocks() -> Iterator[Array]:
        value = read_block(base, 0, base.shape)
        wanted = np.zeros(parameter.stored_shape, base.dtype.numpy)
        kept = min(wanted.shape[-1], value.shape[-1])
        wanted[..., :kept] = value[..., :kept]
        yield cast(wanted, parameter.stored_dtype, name=parameter.name)

    return Entry(parameter.name, parameter.stored_dtype, parameter.stored_shape, blocks)
