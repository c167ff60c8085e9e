"""Opening a base graph with an adapter merged on the way: seconds, memory, runs after it."""

from __future__ import annotations

import sys

import _measure

CLAIM = "merge_at_load"
MODEL = "roberta-base"
METHOD = (
    "An export of RoBERTa-base (125 M parameters, 3 labels) holds the adapter 'merged' (r=8 on q "
    "and v, and a head); the same adapter is given beside it to be merged at load. One process, "
    "two passes to warm up; each repetition opens, in turn, the merged graph, the base graph with "
    "the adapter merged at load, and the base graph, each in a session of its own: seconds and "
    "processor seconds of the load alone, and the resident anonymous memory that it adds. Then "
    "all are open and run 1 x 128 tokens in random order, the merged graph twice for A/A; ratios "
    "are medians of paired ratios with bootstrap intervals. Outputs are compared bit for bit, and "
    "the export's files by name and hash before and after."
)


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=7)
    with _measure.Session(CLAIM, options, peers=False) as session:
        base = session.generate("base", MODEL, "base", seed=0)
        adapter = session.generate("adapter", MODEL, "adapter", seed=1)
        export = session.work / "export"
        session.ours(
            "merge-and-build", "--no-verify", "--base", base, "--adapter", f"merged={adapter}",
            "--out", export,
        )  # fmt: skip
        found = session.answer(
            [sys.executable, _measure.BENCH / "_serving.py", "merge-at-load", export, adapter,
             str(session.repeat)]
        )  # fmt: skip
        loads = found["loads"]
        ratio, interval = found["ratio"]
        session.report(
            "A RoBERTa-base adapter merged while the session opens",
            METHOD,
            {way: {key: _measure.summarise(values) for key, values in loads[way].items()}
             for way in loads},
            [
                _measure.median_target(
                    "seconds to open the base with the adapter", 1.0,
                    loads["merged at load"]["wall_s"],
                ),
                _measure.Target("outputs are the merged graph's, bit for bit", "is", limit=True,
                                measured=found["equal"]),
                _measure.Target("files of the export stay as they are", "is", limit=True,
                                measured=found["unchanged"]),
                _measure.Target("latency over the merged graph's", "at most", 1.02,
                                round(ratio, 4), tuple(round(each, 4) for each in interval)),
                _measure.Target("the cache's count over the memory that is added", "at most", 1.15,
                                found["counted_over_measured"]),
            ],
            a_a=found["a_a"],
        )  # fmt: skip


if __name__ == "__main__":
    main()
