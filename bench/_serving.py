"""What `merge_at_load.py` and `switching.py` measure within one process; prints JSON.

Usage: _serving.py merge-at-load EXPORT ADAPTER REPETITIONS | switching EXPORT ROUNDS
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _measure
import numpy as np

from lora_export.runtime import Session, open_export
from lora_export.verify.latency import bootstrap_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (1, 128)
ADAPTERS = 100
RANK = 8
RUN_ROUNDS = 60
WARM_UP = 2


def feeds_of(session: Session) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(5, 5000, SHAPE)
    return {
        each.name: ids if each.name == "input_ids" else np.ones(SHAPE, np.int64)
        for each in session.inputs
    }


def anonymous_mb() -> float:
    """Return the resident memory that no file is behind, what was freed given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    sys.exit("error: this kernel does not tell RssAnon")


def interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Return the ms of each run, in rounds of random order."""
    random = np.random.default_rng(0)
    names = list(runs)
    times = {name: np.empty(rounds) for name in names}
    for name in names * 3:
        runs[name]()
    for at in range(rounds):
        for which in random.permutation(len(names)):
            start = time.perf_counter_ns()
            runs[names[which]]()
            times[names[which]][at] = (time.perf_counter_ns() - start) / 1e6
    return times


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def merge_at_load(export: Path, adapter: Path, repetitions: int) -> dict[str, Any]:
    before = hashes(export)
    ways = {"merged": "merged", "merged at load": "given", "base": None}
    loads: dict[str, dict[str, list[float]]] = {
        way: {"wall_s": [], "processor_s": [], "added_mb": []} for way in ways
    }
    counted: list[float] = []
    for repetition in range(-WARM_UP, repetitions):
        for way, name in ways.items():
            with open_export(export, adapters={"given": adapter}) as session:
                feeds = feeds_of(session)
                memory = anonymous_mb()
                wall, processor = time.perf_counter(), time.process_time()
                if name is None:
                    session._graphs.shared("base")  # noqa: SLF001  (a load without a run)
                else:
                    session.load(name)
                wall, processor = time.perf_counter() - wall, time.process_time() - processor
                added = anonymous_mb() - memory
                session.run(feeds, adapter=name)
                if repetition >= 0:
                    for key, value in zip(loads[way], (wall, processor, added), strict=True):
                        loads[way][key].append(value)
                if name == "given":
                    counted.append(session.cached_bytes / 1e6)
    with open_export(export, adapters={"given": adapter}) as session:
        merged = session.run(feeds, adapter="merged")
        given = session.run(feeds, adapter="given")
        times = interleaved(
            {
                "merged": lambda: session.run(feeds, adapter="merged"),
                "again": lambda: session.run(feeds, adapter="merged"),
                "given": lambda: session.run(feeds, adapter="given"),
            },
            RUN_ROUNDS,
        )
    measured = float(np.median(loads["merged at load"]["added_mb"]))
    return {
        "loads": loads,
        "equal": all(np.array_equal(merged[name], given[name]) for name in merged),
        "unchanged": hashes(export) == before,
        "ratio": bootstrap_ratio(times["merged"], times["given"], seed=0),
        "a_a": bootstrap_ratio(times["merged"], times["again"], seed=0),
        "counted_over_measured": round(float(np.median(counted)) / measured, 4),
    }


def switching(export: Path, rounds: int) -> dict[str, Any]:
    sys.path.insert(0, str(_measure.BENCH.parent))
    from tests.helpers.swappable import add_swappable, write_pack

    add_swappable(export, ("query", "value"), {})
    with open_export(export) as session:
        inputs = session._graphs.swappable().optional  # noqa: SLF001  (names and shapes)
    random = np.random.default_rng(0)
    names = [f"tenant-{at}" for at in range(ADAPTERS)]
    packs = []
    for name in names:
        tensors = {
            key: (0.02 * random.standard_normal([axis if isinstance(axis, int) else RANK
                                                 for axis in shape])).astype(np.float32)
            for key, shape in inputs.items()
            if ".lora_" in key
        }  # fmt: skip
        packs.append(write_pack(export, name, tensors))
    os.sync()
    with open_export(export) as session:
        feeds = feeds_of(session)
        for _ in range(5):
            session.run(feeds)
        before = anonymous_mb()
        cold_ms = []
        for name, pack in zip(names, packs, strict=True):
            with pack.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter_ns()
            session.load(name)
            cold_ms.append((time.perf_counter_ns() - start) / 1e6)
            session.run(feeds, adapter=name)
        added = anonymous_mb() - before
        size = session.cached_bytes / 1e6

        times: dict[str, list[float]] = {"same": [], "again": [], "switched": []}
        kinds, current = list(times), 0
        order = np.random.default_rng(1)
        for at in range(-3, rounds):
            row = {}
            for which in order.permutation(len(kinds)):
                current ^= kinds[which] == "switched"
                start = time.perf_counter_ns()
                session.run(feeds, adapter=names[current])
                row[kinds[which]] = (time.perf_counter_ns() - start) / 1e6
            if at >= 0:
                for kind, value in row.items():
                    times[kind].append(value)
    arrays = {kind: np.array(values) for kind, values in times.items()}
    return {
        "switch": bootstrap_ratio(arrays["same"], arrays["switched"], seed=0),
        "a_a": bootstrap_ratio(arrays["same"], arrays["again"], seed=0),
        "run_ms": times["same"],
        "cold_ms": cold_ms,
        "cold_p99_ms": round(float(np.quantile(cold_ms, 0.99)), 3),
        "added_over_packs": round(added / size, 4),
        "memory": {"before_mb": before, "added_mb": added, "packs_mb": size},
    }


def main() -> None:
    what, export, *rest = sys.argv[1:]
    if what == "merge-at-load":
        found = merge_at_load(Path(export), Path(rest[0]), int(rest[1]))
    else:
        found = switching(Path(export), int(rest[0]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
