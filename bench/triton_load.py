"""Requests per second and latency of generated repositories in the real Triton server.

Needs the server: ``make test-triton`` fetches it into build/triton. Loopback only; every line is
bounded in time and in requests.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import _measure
import numpy as np
from _checkpoints import without_head
from _environment import ROOT
from _serving import like

sys.path.insert(0, str(ROOT))

from tests.triton.server import serving

CLAIM = "triton_load"
MODEL = "roberta-base"
LENGTH = 32
ADAPTERS = 100
SECONDS = 8
MOST = 2000
CLIENTS = (1, 4)
DIRECT = 100
METHOD = (
    "RoBERTa-base, random weights, adapters of rank 8 on q and v; 1 x 32 tokens a request, gRPC "
    "over the loopback from a second process (tritonclient, asyncio), 1 client and 4 at once, each "
    "line 8 seconds at most; one instance of the Python backend, dynamic batching with a queue "
    "delay of 500 us. Every adapter was asked for once before. Swappable and batched: adapters "
    "drawn at random out of 1, 10 and 100. Direct: the same run in this process with ONNX Runtime, "
    "numpy arrays in and out; the overhead is the p50 of one client over the median of that."
)


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=1)
    with _measure.Session(CLAIM, options, peers=False) as session:
        base = session.generate("base", MODEL, "base", seed=0)
        adapter = without_head(session.generate("adapter", MODEL, "adapter", seed=1))
        names = [f"tenant-{at}" for at in range(ADAPTERS)]
        given = [like(adapter, session.work / "adapters" / name, at)
                 for at, name in enumerate(names)]  # fmt: skip
        words = [word for folder in given for word in ("--adapter", f"{folder.name}={folder}")]
        repository = session.work / "models"
        for mode in ("merged", "swappable", "batched"):
            export = session.work / mode
            session.ours(
                "merge-and-build", "--no-verify", "--no-latency", "--base", base,
                *(words[:2] if mode == "merged" else words), "--mode", mode, "--out", export,
            )  # fmt: skip
            session.ours("triton", export, "--backend", "python", "--repository", repository)
        direct = _direct(session.work / "merged")
        lines: dict[str, Any] = {}
        with serving(ROOT / "build" / "triton", repository, session.work / "server.log") as server:
            for clients in CLIENTS:
                for what, model, adapters in (
                    ("base", "merged", ["base"]),
                    ("merged", "merged", names[:1]),
                    ("swappable, 1 adapter", "swappable", names[:1]),
                    ("swappable, 10 adapters", "swappable", names[:10]),
                    ("swappable, 100 adapters", "swappable", names),
                    ("batched, 100 adapters", "batched", names),
                ):
                    lines[f"{what}, {clients} client(s)"] = session.answer(
                        [sys.executable, _measure.BENCH / "_triton_client.py", server.grpc, model,
                         str(clients), str(SECONDS), str(MOST), str(LENGTH), *adapters]
                    )  # fmt: skip
        for name, line in lines.items():
            print(f"  {name:36} {line}")
        overhead = lines["merged, 1 client(s)"]["p50_ms"] - statistics.median(direct)
        session.report(
            "Generated repositories in Triton 2.51",
            METHOD,
            {"direct": {"ms": _measure.summarise(direct)}},
            [
                _measure.Target("ms that server and Python backend add to a run", "at most", 5.0,
                                round(overhead, 3)),
                _measure.Target("requests per second of 100 swappable adapters over one",
                                "at least", 0.9,
                                round(lines["swappable, 100 adapters, 1 client(s)"]["per_second"]
                                      / lines["swappable, 1 adapter, 1 client(s)"]["per_second"],
                                      3)),
            ],
            lines=lines,
        )  # fmt: skip


def _direct(export: Any) -> list[float]:
    """Return the ms of runs of a merged graph in this process."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(export / "tenant-0.onnx"), settings)
    ids = np.random.default_rng(0).integers(5, 5000, (1, LENGTH))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    times = []
    for _ in range(DIRECT + 10):
        begin = time.perf_counter()
        session.run(None, feeds)
        times.append((time.perf_counter() - begin) * 1e3)
    return times[10:]


if __name__ == "__main__":
    main()
