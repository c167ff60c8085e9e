"""Requests per second and latency of generated repositories in the real Triton server.

Needs the server: ``make test-triton`` fetches it into build/triton. Loopback only; every line is
bounded in time and in requests.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import _measure
import numpy as np
from _checkpoints import without_head
from _environment import ROOT
from _serving import like

sys.path.insert(0, str(ROOT))

from tests.end_to_end.triton.server import serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLAIM = "triton_load"
MODEL = "roberta-base"
LENGTH = 32
ADAPTERS = 100
SECONDS = 3
MOST = 1000
CLIENTS = (1, 4)
DIRECT = 40
MODELS = {  # the model, and how many of its adapters are drawn from
    "base": ("merged", 0),
    "merged": ("merged", 1),
    "swappable, 1 adapter": ("swappable", 1),
    "swappable, 10 adapters": ("swappable", 10),
    "swappable, 100 adapters": ("swappable", ADAPTERS),
    "batched, 100 adapters": ("batched", ADAPTERS),
}
LINES = [(what, clients) for clients in CLIENTS for what in MODELS]
METHOD = (
    "RoBERTa-base, random weights, adapters of rank 8 on q and v; 1 x 32 tokens a request, gRPC "
    "over the loopback from a second process (tritonclient, asyncio), 1 client and 4 at once, each "
    "line 3 seconds at most in each of several rounds of random order; medians of the rounds. One "
    "instance of the Python backend, dynamic batching with a queue delay of 500 us. Every adapter "
    "was asked for once before. Swappable and batched: adapters drawn at random out of 1, 10 and "
    "100. Direct: the same run in this process with ONNX Runtime, numpy arrays in and out, in each "
    "round; the overhead is the p50 of one client over the median of that, round by round."
)


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=5)
    with _measure.Session(CLAIM, options, peers=False) as session:
        names = [f"tenant-{at}" for at in range(ADAPTERS)]
        repository = session.work / "models"
        _build(session, names, repository)
        run_directly = _direct(session.work / "merged")
        direct: list[float] = []
        rounds: dict[str, list[dict[str, Any]]] = {f"{w}, {c} client(s)": [] for w, c in LINES}
        with serving(ROOT / "build" / "triton", repository, session.work / "server.log") as server:
            for index in session.repetitions():
                order = [*LINES, None]
                np.random.default_rng(index).shuffle(order)
                for line in order:
                    if line is None:
                        direct.append(run_directly())
                        continue
                    what, clients = line
                    model, count = MODELS[what]
                    found = session.answer(
                        [sys.executable, _measure.BENCH / "_triton_client.py", server.grpc, model,
                         str(clients), str(SECONDS), str(MOST), str(LENGTH),
                         *(names[:count] or ["base"])]
                    )  # fmt: skip
                    rounds[f"{what}, {clients} client(s)"].append(found)
        lines = {
            name: {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
            for name, rows in rounds.items()
        }
        for name, line in lines.items():
            print(f"  {name:36} {line}")
        merged = [row["p50_ms"] for row in rounds["merged, 1 client(s)"]]
        added = [ours - own for ours, own in zip(merged, direct, strict=True)]
        one, many = (
            [row["per_second"] for row in rounds[f"swappable, {count}, 1 client(s)"]]
            for count in ("1 adapter", "100 adapters")
        )
        session.report(
            "Generated repositories in Triton 2.51",
            METHOD,
            {"direct": {"ms": _measure.summarise(direct)}},
            [
                _measure.median_target(
                    "ms that server and Python backend add to a run of one client", 5.0, added
                ),
                _measure.ratio_target(
                    "requests per second of 100 swappable adapters over one", "at least", 0.9,
                    many, one,
                ),
            ],
            rounds=rounds,
            lines=lines,
        )  # fmt: skip


def _build(session: _measure.Session, names: list[str], repository: Path) -> None:
    """Build an export of each mode with these adapters, and serve them from one repository."""
    base = session.generate("base", MODEL, "base", seed=0)
    adapter = without_head(session.generate("adapter", MODEL, "adapter", seed=1))
    given = [like(adapter, session.work / "adapters" / name, at)
             for at, name in enumerate(names)]  # fmt: skip
    words = [word for folder in given for word in ("--adapter", f"{folder.name}={folder}")]
    for mode in ("merged", "swappable", "batched"):
        export = session.work / mode
        session.ours(
            "merge-and-build", "--no-verify", "--no-latency", "--base", base,
            *(words[:2] if mode == "merged" else words), "--mode", mode, "--out", export,
        )  # fmt: skip
        session.ours("triton", export, "--backend", "python", "--repository", repository)


def _direct(export: Path) -> Callable[[], float]:
    """Return what runs a merged graph in this process: the median in ms."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(export / "tenant-0.onnx"), settings)
    ids = np.random.default_rng(0).integers(5, 5000, (1, LENGTH))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def run() -> float:
        times = []
        for _ in range(DIRECT + 5):
            begin = time.perf_counter()
            session.run(None, feeds)
            times.append((time.perf_counter() - begin) * 1e3)
        return statistics.median(times[5:])

    return run


if __name__ == "__main__":
    main()
