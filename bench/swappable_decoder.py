"""Cost of an adapter of every linear layer as inputs of a decoder: prefill and decode."""

from __future__ import annotations

import sys
from typing import Any, Final

import _measure
from _architectures import MODELS

CLAIM = "swappable_decoder"
MODEL = "llama-110m"
PREFILL: Final = (128, 0)
DECODE: Final = (1, 128)
OVERHEAD_LIMIT: Final = 1.5
"""How many times the share of the added operations the added time may be."""
METHOD = (
    "A Llama-shaped model of 110 M parameters, float32, random weights, an adapter of rank 16 on "
    "all linear layers of its 12 blocks, swappable, ONNX Runtime. Prefill: 1 x 128 tokens and no "
    "past; decode: one token behind a past of 128. One process, runs interleaved in random order: "
    "the base's graph, the same again (A/A), the swappable graph without and with the adapter; "
    "medians of paired ratios with bootstrap intervals. The limit is 1 + 1.5 times the share of "
    "the multiplications that A and B add to those of the base's graph (matrices, head, attention)."
)


def added_share(tokens: int, past: int) -> float:
    """Return the multiplications of A and B over those of the base's graph.

    Per token: ``r·(in + out)`` for each adapted module, over ``in·out`` for each, the head's
    ``width·vocabulary``, and ``2·width·positions`` of attention in each block.
    """
    model = MODELS[MODEL]
    config, sizes = model.config, model.adapted(model.config).values()
    width, blocks = config["hidden_size"], config["num_hidden_layers"]
    positions = past + tokens  # masked ones are computed too
    base = sum(inputs * outputs for inputs, outputs in sizes) + width * config["vocab_size"]
    base += 2 * width * positions * blocks
    return model.rank * sum(inputs + outputs for inputs, outputs in sizes) / base


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=300)
    with _measure.Session(CLAIM, options, peers=False) as session:
        base = session.generate("base", MODEL, "base", seed=0)
        adapter = session.generate("adapter", MODEL, "adapter", seed=1)
        export = session.work / "export"
        session.ours(
            "merge-and-build", "--no-verify", "--no-latency", "--base", base,
            "--adapter", f"all={adapter}", "--mode", "swappable", "--out", export,
        )  # fmt: skip
        measured: dict[str, Any] = {}
        found: dict[str, Any] = {}
        targets: list[_measure.Target] = []
        for name, (tokens, past), rounds in (
            ("prefill, 128 tokens", PREFILL, session.repeat),
            ("decode, past of 128", DECODE, 4 * session.repeat),
        ):
            row = session.answer(
                [sys.executable, _measure.BENCH / "_serving.py", "swappable", export, str(rounds),
                 str(tokens), str(past)]
            )  # fmt: skip
            measured[name] = {"base_ms": _measure.summarise(row.pop("base_ms"))}
            share = added_share(tokens, past)
            found[name] = {**row, "added_share": round(share, 4)}
            ratio, interval = row["with"]
            limit = round(1 + OVERHEAD_LIMIT * share, 4)
            spread = (round(interval[0], 4), round(interval[1], 4))
            what = f"{name}: with rank 16 on all linear layers over base"
            targets.append(_measure.Target(what, "at most", limit, round(ratio, 4), spread))
        session.report(
            "A decoder with an adapter as inputs", METHOD, measured, targets, found=found
        )


if __name__ == "__main__":
    main()
