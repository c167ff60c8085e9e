"""Our graph and optimum's of the same model, in one process of ONNX Runtime: latency, nodes."""

from __future__ import annotations

import sys
from typing import Any

import _measure

CLAIM = "graph_quality"
LENGTH, PAST = 128, 128
PAIRS = {"forward": 60, "prefill": 60, "decode": 300}
SHORT_PAIRS = 8
AGREEMENT = 1e-4
LIMIT = 1.0
MODELS = {
    "bert-base": ("text-classification", "text-classification", ("forward",)),
    "gpt2": ("text-generation", "text-generation-with-past", ("prefill", "decode")),
    "llama-110m": ("text-generation", "text-generation-with-past", ("prefill", "decode")),
}
"""Model: our task, the peers' task, what is timed."""
METHOD = (
    "Random weights, float32, the same checkpoint on both sides; batch 1. Forward and prefill: 128 "
    "tokens, for decoders with an empty past and the logits of all positions; decode: one token "
    "after 128. Our graph, optimum's, and optimum's once more are sessions with default options in "
    "one process; every repetition runs all three in random order. The ratio is the median over "
    "repetitions of ours over optimum's, the range its bootstrap interval (95 %). The third "
    "session's ratio shows the noise. Outputs of both graphs are compared first."
)


def measure(session: _measure.Session, model: str, *, short: bool) -> dict[str, dict[str, Any]]:
    """Export `model` on both sides and time what the table says."""
    task, peer_task, phases = MODELS[model]
    checkpoint = session.work / model
    session.python(_measure.BENCH / "_random_model.py", model, checkpoint)
    peer, ours = session.work / f"{model}-peer", session.work / f"{model}-ours"
    session.peer_export_unchecked(checkpoint, peer, peer_task)
    session.ours("export", "--base", checkpoint, "--task", task, "--out", ours)
    rows: dict[str, dict[str, Any]] = {}
    for phase in phases:
        print(f"{CLAIM}: {model}, {phase}", file=sys.stderr)
        length, past = (1, PAST) if phase == "decode" else (LENGTH, 0)
        pairs = SHORT_PAIRS if short else PAIRS[phase] * session.repeat
        rows[f"{model} {phase}"] = session.answer([
            sys.executable, _measure.BENCH / "_paired.py", peer / "model.onnx", ours / "base.onnx",
            *map(str, (length, past, pairs)),
        ])  # fmt: skip
    session.remove(checkpoint, peer, ours)
    return rows


def targets_of(rows: dict[str, dict[str, Any]]) -> list[_measure.Target]:
    """Return what is claimed of each row."""
    found: list[_measure.Target] = []
    for name, row in rows.items():
        ratio = row["ours_over_peer"]
        low, high = ratio["interval"]
        found += [
            _measure.Target(
                f"{name}: latency over optimum's", "at most", LIMIT, ratio["median"], (low, high)
            ),
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
        session.report(str(__doc__), METHOD, measured, targets_of(rows), compared=rows)


if __name__ == "__main__":
    main()
