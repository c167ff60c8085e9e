"""The same model at opset 20 and at opset 24, in one process of ONNX Runtime: latency, nodes."""

from __future__ import annotations

import sys
from typing import Any

import _measure

CLAIM = "opsets"
LENGTH, PAST = 128, 128
PAIRS = {"forward": 60, "prefill": 60, "decode": 300}
SHORT_PAIRS = 8
AGREEMENT = 1e-4
MODELS = {
    "bert-base": ("text-classification", ("forward",)),
    "gpt2": ("text-generation", ("prefill", "decode")),
    "llama-110m": ("text-generation", ("prefill", "decode")),
}
"""Model: the task, what is timed."""
OPSETS = (20, 24)
METHOD = (
    "Random weights, float32, one checkpoint; batch 1. Forward and prefill: 128 tokens, for "
    "decoders with an empty past and the logits of all positions; decode: one token after 128. The "
    "graph of opset 20, that of opset 24, and that of 20 once more are sessions with default "
    "options in one process; every repetition runs all three in random order. The ratio is the "
    "median over repetitions of 24 over 20, the range its bootstrap interval (95 %). The third "
    "session's ratio shows the noise. Outputs are compared first; the speeds are reported, and "
    "nothing is claimed of them."
)


def measure(session: _measure.Session, model: str, *, short: bool) -> dict[str, dict[str, Any]]:
    """Export `model` for both opsets and time what the table says."""
    task, phases = MODELS[model]
    checkpoint = session.work / model
    session.python(_measure.BENCH / "_random_model.py", model, checkpoint)
    graphs = {opset: session.work / f"{model}-{opset}" for opset in OPSETS}
    for opset, folder in graphs.items():
        session.ours("export", "--base", checkpoint, "--task", task, "--opset", str(opset),
                     "--out", folder)  # fmt: skip
    older, newer = (graphs[opset] / "base.onnx" for opset in OPSETS)
    rows: dict[str, dict[str, Any]] = {}
    for phase in phases:
        print(f"{CLAIM}: {model}, {phase}", file=sys.stderr)
        length, past = (1, PAST) if phase == "decode" else (LENGTH, 0)
        pairs = SHORT_PAIRS if short else PAIRS[phase] * session.repeat
        rows[f"{model} {phase}"] = session.answer([
            sys.executable, _measure.BENCH / "_paired.py", older, newer,
            *map(str, (length, past, pairs)),
        ])  # fmt: skip
    session.remove(checkpoint, *graphs.values())
    return rows


def main() -> None:
    options = _measure.arguments(
        CLAIM, str(__doc__), repeat=1, short=f"{SHORT_PAIRS} pairs each, for a try"
    )
    with _measure.Session(CLAIM, options, peers=False) as session:
        rows: dict[str, dict[str, Any]] = {}
        for model in MODELS:
            rows |= measure(session, model, short=options.short)
        measured = _measure.pop_samples(rows)
        targets = [
            _measure.Target(
                f"{name}: largest difference of outputs", "at most", AGREEMENT,
                row["max_relative_difference"],
            )
            for name, row in rows.items()
        ]  # fmt: skip
        session.report(str(__doc__), METHOD, measured, targets, compared=rows)


if __name__ == "__main__":
    main()
