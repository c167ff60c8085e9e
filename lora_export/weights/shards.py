"""A Hugging Face checkpoint written by a few threads: each tensor at its place, shard by shard.

Headers are known before any value is, so that every tensor has its place and no thread waits for
another: one takes a tensor, reads it in blocks, merges, hashes and writes them, and takes the next.
NumPy, hashlib and the kernel let go of the interpreter meanwhile. A shard whose last tensor is
written is synced while the next one is worked on. Names follow transformers:
``model.safetensors``, or ``model-00001-of-00003.safetensors`` … and
``model.safetensors.index.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.errors import LoraExportError, UsageError
from lora_export.core.files import storage_errors, write_synced
from lora_export.core.safetensors_file import encode_header
from lora_export.core.tensors import bytes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from lora_export.weights.stream import Entry

__all__ = ["INDEX_NAME", "parse_size", "plan_shards", "write_sharded"]

INDEX_NAME: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_METADATA: Final = {"format": "pt"}  # transformers refuses a file without
_THREADS_LIMIT: Final = 4
_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
                 "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}  # fmt: skip
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Return a size such as ``5GB`` (decimal) or ``500MiB`` (binary) in bytes.

    >>> parse_size("5GB"), parse_size("1.5 MiB")
    (5000000000, 1572864)

    Raises:
        UsageError: It is not a positive number with a known unit.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    count = int(float(match[1]) * unit) if match and unit else 0
    if count <= 0:
        msg = f"{text!r} is not a size"
        raise UsageError(msg, hint="Write a number and a unit: 5GB, 500MB, 2GiB.")
    return count


def plan_shards(entries: Sequence[Entry], max_shard_bytes: int) -> dict[str, list[Entry]]:
    """Return the entries of each file; one larger than the limit has a file of its own."""
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if groups[-1] and filled + entry.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.nbytes
    if len(groups) == 1:
        return {_SINGLE: groups[0]}
    return {
        f"model-{index:05d}-of-{len(groups):05d}.safetensors": group
        for index, group in enumerate(groups, 1)
    }


def write_sharded(
    folder: Path,
    entries: Sequence[Entry],
    *,
    max_shard_bytes: int,
    hashed: Collection[str] = (),
    advance: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """Write `entries` into `folder` as a checkpoint, synced.

    Args:
        folder: An existing folder of the caller's own; after an error it holds unfinished files.
        entries: The tensors, in the order in which they fill the shards.
        max_shard_bytes: How large a file may become.
        hashed: Names of the tensors to hash.
        advance: Told about bytes, from any thread.

    Returns:
        The SHA-256 of the bytes of each tensor in `hashed`, in hexadecimal.

    Raises:
        StorageError: The disk refuses.
    """
    shards = plan_shards(entries, max_shard_bytes)
    digests: dict[str, str] = {}
    stop = threading.Event()

    def told(count_bytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        if advance is not None:
            advance(count_bytes)

    with ThreadPoolExecutor(thread_count()) as workers, ThreadPoolExecutor(1) as syncer:
        files: list[_ShardFile] = []
        futures: list[Future[Any]] = []
        try:
            for name, group in shards.items():
                file = _ShardFile(folder / name, group, syncer)
                files.append(file)
                futures += [
                    workers.submit(file.write, entry, hashed, digests, told)
                    for entry in file.ordered
                ]
            _wait_for(futures)
            _wait_for([file.synced for file in files])
        finally:
            stop.set()
            for future in futures:
                future.cancel()
            workers.shutdown(wait=True, cancel_futures=True)
            syncer.shutdown(wait=True)
            for file in files:
                file.close()
    if len(shards) > 1:
        write_synced(folder / INDEX_NAME, _index(shards))
    return digests


def thread_count() -> int:
    """Return how many threads work on tensors: one per processor that we may use, few at most."""
    return min(_THREADS_LIMIT, len(os.sched_getaffinity(0)))


class _Stopped(Exception):  # noqa: N818  (ends a thread; nobody sees it)
    """Another thread has failed, or the user wants out."""


class _ShardFile:
    """One file that several threads fill; the one that writes the last tensor has it synced."""

    def __init__(self, path: Path, entries: Sequence[Entry], syncer: ThreadPoolExecutor) -> None:
        self._path, self._syncer = path, syncer
        self.ordered = sorted(entries, key=lambda e: (-e.dtype.itemsize_bytes, e.name))
        header, self._starts = encode_header(
            [(e.name, e.dtype, e.shape) for e in self.ordered], _METADATA
        )
        self._header = header
        self._descriptor: int | None = None
        self._left = len(self.ordered)
        self._lock = threading.Lock()
        self.synced: Future[None] = Future()

    def write(
        self,
        entry: Entry,
        hashed: Collection[str],
        digests: dict[str, str],
        advance: Callable[[int], None],
    ) -> None:
        """Write one tensor at its place; note its hash in `digests`, if it is in `hashed`."""
        digest = hashlib.sha256() if entry.name in hashed else None
        done = 0
        for block in entry.blocks():
            raw = bytes_of(np.ascontiguousarray(block))
            if done + len(raw) > entry.nbytes:
                break
            with storage_errors(str(self._path)):
                _write_at(self._open(), raw, self._starts[entry.name] + done)
            if digest is not None:
                digest.update(raw)
            done += len(raw)
            advance(len(raw))
        if done != entry.nbytes:
            msg = f"{entry.name!r} did not give its {entry.nbytes} bytes"
            raise LoraExportError(msg)
        if digest is not None:
            digests[entry.name] = digest.hexdigest()
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._syncer.submit(self._sync)

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        """Return the descriptor; few files are open at once, however many shards there are."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(
                    self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
                )
                _write_at(self._descriptor, memoryview(self._header), 0)
            return self._descriptor

    def _sync(self) -> None:
        try:
            with storage_errors(str(self._path)):
                os.fsync(self._open())
            self.close()
        except BaseException as error:  # noqa: BLE001  (handed to whoever waits)
            self.synced.set_exception(error)
        else:
            self.synced.set_result(None)


def _write_at(descriptor: int, raw: memoryview, offset_bytes: int) -> None:
    done = 0
    while done < len(raw):
        done += os.pwrite(descriptor, raw[done:], offset_bytes + done)


def _wait_for(futures: Iterable[Future[Any]]) -> None:
    """Wait for all, or raise the first error; Ctrl-C comes through."""
    pending = list(futures)
    wait(pending, return_when=FIRST_EXCEPTION)
    failed = [f.exception() for f in pending if f.done() and f.exception() is not None]
    for error in failed:
        assert error is not None  # noqa: S101  (filtered above)
        raise error


def _index(shards: Mapping[str, Sequence[Entry]]) -> bytes:
    entries = [entry for group in shards.values() for entry in group]
    table = {
        "metadata": {
            "total_parameters": sum(prod(entry.shape) for entry in entries),
            "total_size": sum(entry.nbytes for entry in entries),
        },
        "weight_map": {
            entry.name: name
            for name, entry in sorted(
                ((name, entry) for name, group in shards.items() for entry in group),
                key=lambda pair: pair[1].name,
            )
        },
    }
    return (json.dumps(table, indent=2) + "\n").encode()
