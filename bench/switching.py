"""Adapters of one swappable graph: switching, a cold one, a hundred of them."""

from __future__ import annotations

import sys

import _measure
from _checkpoints import without_head

CLAIM = "switching"
MODEL = "roberta-base"
METHOD = (
    "A swappable export of RoBERTa-base, and 100 adapters of rank 8 on q and v (1.18 MB each, "
    "random), added with `add`. One process, 1 x 128 tokens. Switching: two adapters are loaded; "
    "in each round three runs in random order: an adapter again, the same again (A/A), and the "
    "other one; ratios are medians of paired ratios with bootstrap intervals. Cold: each pack is "
    "put out of the page cache (posix_fadvise), then read, checked and bound by its first request; "
    "the time of that load, one sample per pack. Memory: resident anonymous memory with all packs "
    "loaded and run, over that with none, against the size of the packs."
)


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=150)
    with _measure.Session(CLAIM, options, peers=False) as session:
        base = session.generate("base", MODEL, "base", seed=0)
        adapter = without_head(session.generate("adapter", MODEL, "adapter", seed=1))
        export = session.work / "export"
        session.ours(
            "merge-and-build", "--no-verify", "--base", base, "--adapter", f"first={adapter}",
            "--mode", "swappable", "--out", export,
        )  # fmt: skip
        found = session.answer(
            [sys.executable, _measure.BENCH / "_serving.py", "switching", export,
             adapter, str(session.repeat)]
        )  # fmt: skip
        ratio, interval = found["switch"]
        low, high = found["a_a"][1]
        session.report(
            "One swappable RoBERTa-base graph, many adapters",
            METHOD,
            {
                "run": {"ms": _measure.summarise(found["run_ms"])},
                "cold load": {"ms": _measure.summarise(found["cold_ms"])},
            },
            [
                _measure.Target("a run after a switch over one without", "at most",
                                round(max(high, 1 / low), 4), round(ratio, 4),
                                tuple(round(each, 4) for each in interval)),
                _measure.Target("p99 in ms of a cold 1 MB adapter", "at most", 10.0,
                                found["cold_p99_ms"]),
                _measure.Target("memory of 100 adapters over their packs' size", "at most", 1.1,
                                found["added_over_packs"]),
            ],
            a_a=found["a_a"],
            memory=found["memory"],
        )  # fmt: skip


if __name__ == "__main__":
    main()
