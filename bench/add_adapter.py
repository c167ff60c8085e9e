"""A further adapter on an existing export: ``lora-export add`` against the peers' whole pipeline.

Also against what no program can avoid: starting up, and copying the changed bytes with fsync.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import _measure

CLAIM = "add_adapter"
MODEL = "roberta-base"
TASK = "text-classification"
AUTO_CLASS = "AutoModelForSequenceClassification"
ADDS_PER_REPETITION = 5
IMPORTS = (
    "import lora_export.__main__, lora_export.cli.add, lora_export.commands.add, "
    "lora_export.commands.recipe"
)
METHOD = (
    "The export is that of roberta_base.py. Each repetition runs the peers' pipeline (PEFT merge, "
    f"optimum-cli export) for the new adapter once, then {ADDS_PER_REPETITION} times in turn: "
    "'add' under a new name; a process that imports what add imports and ends (start-up); a copy "
    "of the two files that add wrote (weights and graph) to new files with read, write and fsync, "
    "timed inside its process. The added adapter is removed again, unmeasured. 'Past start-up' is "
    "the difference of the medians of add and start-up."
)


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__)
    with _measure.Session(CLAIM, options) as session:
        base = session.generate("base", MODEL, "base", seed=0)
        first = session.generate("adapter", MODEL, "first", seed=1)
        second = session.generate("adapter", MODEL, "second", seed=2)
        export, merged, peers_out, copies = (
            session.work / name for name in ("export", "merged", "peers", "copies")
        )
        session.ours(
            "merge-and-build", "--no-verify", "--base", base, "--adapter", f"first={first}",
            "--out", export,
        )  # fmt: skip

        def run_peers() -> _measure.Run:
            merge = session.peer_merge(base, second, merged, AUTO_CLASS)
            return merge + session.peer_export(merged, peers_out, TASK)

        def run_add() -> _measure.Run:
            return session.ours("add", export, "--adapter", f"second={second}")

        def remove_added() -> None:
            session.ours("remove", export, "second")

        _measure.warm_up(run_peers, run_add)
        agreement = session.compare("graphs", peers_out / "model.onnx", export / "second.onnx")
        session.remove(merged, peers_out)
        remove_added()

        peers, adds, starts, copy_s = [], [], [], []
        changed_bytes = 0
        for _ in session.repetitions():
            peers.append(run_peers())
            session.remove(merged, peers_out)
            for _ in range(ADDS_PER_REPETITION):
                adds.append(run_add())
                starts.append(session.python("-c", IMPORTS))
                copies.mkdir()
                copied = session.answer(
                    [sys.executable, _measure.BENCH / "_copy.py", copies,
                     export / "weights" / "second.safetensors", export / "second.onnx"]
                )  # fmt: skip
                copy_s.append(copied["seconds"])
                changed_bytes = copied["bytes"]
                session.remove(copies)
                remove_added()

        assert agreement["relative_l2"] < 1e-4, agreement
        _report(session, peers, adds, starts, copy_s,
                changed_bytes=changed_bytes, agreement=agreement)  # fmt: skip


def _report(
    session: _measure.Session,
    peers: list[_measure.Run],
    adds: list[_measure.Run],
    starts: list[_measure.Run],
    copy_s: list[float],
    **more: Any,
) -> None:
    add_s, start_s = _measure.walls(adds), _measure.walls(starts)
    past = statistics.median(add_s) - statistics.median(start_s)
    pairs = [(a - s) / c for a, s, c in zip(add_s, start_s, copy_s, strict=True)]
    add_medians = [
        statistics.median(add_s[i * ADDS_PER_REPETITION :][:ADDS_PER_REPETITION])
        for i in range(len(peers))
    ]
    session.report(
        "A further adapter on an existing RoBERTa-base export",
        METHOD,
        {
            "peers": _measure.summarise_runs(peers),
            "add": _measure.summarise_runs(adds),
            "start-up": _measure.summarise_runs(starts),
            "copy with fsync": {"wall_s": _measure.summarise(copy_s)},
        },
        [
            _measure.ratio_target("peers' wall time over add's", "at least", 25,
                                  _measure.walls(peers), add_medians),
            _measure.median_target("peak memory of add in MB", 200, _measure.peaks_mb(adds)),
            _measure.Target(
                "add past start-up over the copy", "at most", 2.0,
                round(past / statistics.median(copy_s), 4),
                (round(min(pairs), 4), round(max(pairs), 4)),
            ),
        ],
        past_start_up_s=round(past, 4),
        **more,
    )  # fmt: skip


if __name__ == "__main__":
    main()
