"""Encoders of ours and those of ONNX Runtime's transformer optimizer, in one process: latency.

MiniLM and RoBERTa-base, a base graph each, with 16, 128 and 384 tokens. The peer is what
`onnxruntime.transformers.optimizer` makes of optimum's export. About 8 minutes on two idle cores.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import _measure

CLAIM: Final = "encoders"
MODELS: Final = ("minilm", "roberta-base")
LENGTHS: Final = (16, 128, 384)
PAIRS: Final = 60
SHORT_PAIRS: Final = 8
AGREEMENT: Final = 1e-4
TASK: Final = "text-classification"
METHOD: Final = (
    "Random weights, float32, the same checkpoint on both sides; one row of tokens without "
    "padding. The peer is optimum's graph after onnxruntime.transformers.optimizer (model_type "
    "bert, its defaults); ours is the base graph of an export, which ONNX Runtime fuses itself "
    "when it opens it. Both, and the peer's once more, are sessions with default options in one "
    "process; every repetition runs all three in random order. The ratio is the median over "
    "repetitions, the range its bootstrap interval (95 %); the third session's ratio shows the "
    "noise. At most 1.00 means: the lower end of the interval is at most 1.00, and the median at "
    "most 1.02."
)


def measure(session: _measure.Session, model: str, *, short: bool) -> dict[str, dict[str, Any]]:
    """Export a model on both sides, and time the graphs at each length."""
    checkpoint, peer, ours = (session.work / f"{model}{end}" for end in ("", "-peer", "-ours"))
    session.python(_measure.BENCH / "_random_model.py", model, checkpoint)
    session.peer_export_unchecked(checkpoint, peer, TASK)
    optimized = session.work / f"{model}-optimized" / "model.onnx"
    fused = session.answer(
        [session.peers_python or "", _measure.BENCH / "_peer_optimizer.py", peer / "model.onnx",
         optimized, checkpoint / "config.json"]
    )  # fmt: skip
    session.remove(peer)
    session.ours("export", "--base", checkpoint, "--task", TASK, "--out", ours)
    rows: dict[str, dict[str, Any]] = {}
    for length in LENGTHS:
        print(f"{CLAIM}: {model}, {length} tokens", file=sys.stderr)
        pairs = SHORT_PAIRS if short else PAIRS * session.repeat
        row = session.answer(
            [sys.executable, _measure.BENCH / "_paired.py", optimized, ours / "base.onnx",
             str(length), "0", str(pairs)]
        )  # fmt: skip
        rows[f"{model}, {length} tokens"] = {**row, **fused}
    session.remove(checkpoint, optimized.parent, ours)
    return rows


def targets_of(rows: dict[str, dict[str, Any]]) -> list[_measure.Target]:
    """Return the targets of each row: no slower than the peer, and the same outputs."""
    found: list[_measure.Target] = []
    for name, row in rows.items():
        ratio = row["ours_over_peer"]
        what = f"{name}: latency over the optimizer's at most 1.00"
        found += [
            _measure.at_most_one(what, ratio["median"], ratio["interval"]),
            _measure.Target(
                f"{name}: largest difference of outputs", "at most", AGREEMENT,
                row["max_relative_difference"],
            ),
        ]  # fmt: skip
    return found


def main() -> None:
    options = _measure.arguments(
        CLAIM, str(__doc__), repeat=1, short=f"{SHORT_PAIRS} pairs each, for a try"
    )
    with _measure.Session(CLAIM, options) as session:
        rows: dict[str, dict[str, Any]] = {}
        for model in MODELS:
            rows |= measure(session, model, short=options.short)
        measured = _measure.pop_samples(rows)
        session.report(
            "Encoders of ours and those of ONNX Runtime's transformer optimizer, in one process",
            METHOD, measured, targets_of(rows), compared=rows,
        )  # fmt: skip


if __name__ == "__main__":
    main()
