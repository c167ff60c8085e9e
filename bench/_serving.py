"""Measurements of `merge_at_load.py` and `switching.py` within one process; prints JSON.

Usage: _serving.py merge-at-load EXPORT ADAPTER REPETITIONS | switching EXPORT ADAPTER ROUNDS |
    swappable EXPORT ROUNDS LENGTH [PAST] | batched EXPORT ROUNDS | overhead EXPORT ROUNDS
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.commands.add import add
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.ondevice.judge.ratios import bootstrap_ratio
from lora_export.ondevice.judge.timing import Interleaved
from lora_export.runtime import Session, open_export

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (1, 128)
ADAPTERS = 100
RUN_ROUNDS = 60
LENGTHS = (1, 2, 4, 8, 16)
BATCHES = (1, 4, 16)
OVERHEAD_LENGTH = 16
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
    measurement = Interleaved(runs, seed=0)
    measurement.warm_up()
    measurement.extend(rounds)
    return measurement.times_ms


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


def like(adapter: Path, folder: Path, seed: int) -> Path:
    """Write an adapter of the same shapes with other values."""
    from safetensors.numpy import load_file, save_file

    folder.mkdir(parents=True)
    shutil.copy(adapter / "adapter_config.json", folder)
    random = np.random.default_rng(seed)
    tensors = {
        name: (0.02 * random.standard_normal(each.shape)).astype(each.dtype)
        for name, each in load_file(adapter / "adapter_model.safetensors").items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def switching(export: Path, adapter: Path, rounds: int) -> dict[str, Any]:
    names = [f"tenant-{at}" for at in range(ADAPTERS)]
    folders = [like(adapter, adapter.parent / name, at) for at, name in enumerate(names)]
    add(export, [AdapterSpec(name=n, source=str(f)) for n, f in zip(names, folders, strict=True)])
    packs = [export / "adapters" / f"{name}.safetensors" for name in names]
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


def feeds_for(session: Session, rows: int, length: int, past: int) -> dict[str, Any]:
    """Return inputs of a graph that may be a decoder's."""
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for each in session.inputs:
        if each.name == "input_ids":
            feeds[each.name] = random.integers(5, 5000, (rows, length))
        elif each.name == "position_ids":
            feeds[each.name] = np.tile(np.arange(past, past + length), (rows, 1))
        elif each.name == "attention_mask":
            feeds[each.name] = np.ones((rows, past + length), np.int64)
        elif each.name.startswith("past_key_values"):
            _, heads, _, width = each.axes
            values = 0.1 * random.standard_normal((rows, heads, past, width))
            feeds[each.name] = values.astype(np.float32)
        else:
            feeds[each.name] = np.zeros((rows, length), np.int64)
    return feeds


def swappable(export: Path, rounds: int, length: int, past: int = 0) -> dict[str, Any]:
    with open_export(export) as session:
        feeds = feeds_for(session, 1, length, past)
        (name,) = session.adapters
        times = interleaved(
            {
                "base": lambda: session.run(feeds, how="merged"),
                "again": lambda: session.run(feeds, how="merged"),
                "without": lambda: session.run(feeds),
                "with": lambda: session.run(feeds, adapter=name),
            },
            rounds,
        )
    return {
        "base_ms": times["base"].tolist(),
        **{
            key: bootstrap_ratio(times["base"], times[which], seed=0)
            for key, which in (("a_a", "again"), ("without", "without"), ("with", "with"))
        },
    }


def batched(export: Path, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with open_export(export) as session:
        rows = [name for name in session.adapters for _ in range(2)]
        for length in LENGTHS:
            feeds = feeds_for(session, len(rows), length, 0)
            groups = [
                {key: value[at : at + 2] for key, value in feeds.items()}
                for at in range(0, len(rows), 2)
            ]
            times = interleaved(
                {
                    "groups": lambda groups=groups: [session.run(each) for each in groups],
                    "at once": lambda feeds=feeds: session.run(feeds),
                    "again": lambda feeds=feeds: session.run(feeds),
                    "batched": lambda feeds=feeds: session.run(feeds, adapter_ids=rows),
                },
                rounds,
            )
            base_gain = bootstrap_ratio(times["at once"], times["groups"], seed=0)
            gain = bootstrap_ratio(times["batched"], times["groups"], seed=0)
            found[str(length)] = {
                "base_gain": base_gain,
                "gain": gain,
                "share": round(gain[0] / base_gain[0], 4),
                "overhead": bootstrap_ratio(times["at once"], times["batched"], seed=0),
                "a_a": bootstrap_ratio(times["at once"], times["again"], seed=0),
                "groups_ms": float(np.median(times["groups"])),
            }
    return found


def overhead(export: Path, rounds: int) -> dict[str, Any]:
    """Return what rows of different adapters cost over rows of the base, by batch size."""
    found: dict[str, Any] = {}
    with open_export(export) as session:
        names = list(session.adapters)
        for batch in BATCHES:
            rows = [names[at % len(names)] for at in range(batch)]
            feeds = feeds_for(session, batch, OVERHEAD_LENGTH, 0)
            times = interleaved(
                {
                    "base": lambda feeds=feeds: session.run(feeds),
                    "batched": lambda feeds=feeds, rows=rows: session.run(feeds, adapter_ids=rows),
                },
                rounds,
            )
            found[str(batch)] = bootstrap_ratio(times["base"], times["batched"], seed=0)
    return found


def main() -> None:
    what, export, *rest = sys.argv[1:]
    if what == "merge-at-load":
        found = merge_at_load(Path(export), Path(rest[0]), int(rest[1]))
    elif what == "switching":
        found = switching(Path(export), Path(rest[0]), int(rest[1]))
    elif what == "swappable":
        found = swappable(Path(export), *map(int, rest))
    elif what == "overhead":
        found = overhead(Path(export), int(rest[0]))
    else:
        found = batched(Path(export), int(rest[0]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
