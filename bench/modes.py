"""Cost of a swappable and a batched graph over the base graph: the modes side by side."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import _measure
from _checkpoints import without_head
from _serving import like

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = "modes"
MODEL = "roberta-base"
ROWS = 8
FINER = 10
"""How many times more rounds the ratios of swappable graphs get, which are near 1."""
METHOD = (
    "RoBERTa-base, random weights, adapters of rank 8 on q and v, ONNX Runtime, one process for "
    "each line, runs interleaved in random order, medians of paired ratios with bootstrap "
    "intervals. Swappable: 1 x 128 tokens, the base's graph against itself (A/A), against the "
    "swappable graph without an adapter and with one. Batched: 16 rows of 8 adapters at once, "
    "against 8 groups of 2 rows one after another in the base's graph (which is as fast as a "
    "merged one); the share is that gain over the gain of the base's own graph from the same "
    "batching. Once without heads, once with a head of 768 x 768 and 3 x 768 in every adapter."
)


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=100)
    with _measure.Session(CLAIM, options, peers=False) as session:
        base = session.generate("base", MODEL, "base", seed=0)
        headed = session.generate("adapter", MODEL, "headed", seed=1)
        plain = without_head(session.generate("adapter", MODEL, "plain", seed=1))
        found: dict[str, Any] = {}
        for name, adapter in (("plain", plain), ("with heads", headed)):
            folder = session.work / name.replace(" ", "-")
            many = [like(adapter, folder / f"tenant-{at}", at) for at in range(ROWS)]
            for mode, adapters in (("swappable", many[:1]), ("batched", many)):
                export = folder / mode
                _export(session, base, adapters, mode, export)
                alone = mode == "swappable"
                rounds = session.repeat * (FINER if alone and name == "plain" else 1)
                found[f"{mode}, {name}"] = session.answer(
                    [sys.executable, _measure.BENCH / "_serving.py", mode, export,
                     str(rounds), *(["128"] if alone else [])]
                )  # fmt: skip
        _report(session, found)


def _export(
    session: _measure.Session, base: Path, adapters: list[Path], mode: str, export: Path
) -> None:
    given = [word for each in adapters for word in ("--adapter", f"{each.name}={each}")]
    session.ours(
        "merge-and-build", "--no-verify", "--no-latency", "--base", base, *given, "--mode", mode,
        "--out", export,
    )  # fmt: skip


def _report(session: _measure.Session, found: dict[str, Any]) -> None:
    swappable, batched = found["swappable, plain"], found["batched, plain"]

    noise = max(abs(end - 1) for end in swappable["a_a"][1])

    def at_most(what: str, limit: float, key: str) -> _measure.Target:
        ratio, interval = swappable[key]
        low, high = (round(each, 4) for each in interval)
        return _measure.Target(what, "at most", limit, round(ratio, 4), (low, high))

    session.report(
        "Swappable and batched graphs of RoBERTa-base against its base graph",
        METHOD,
        {"base, 1 x 128 tokens": {"ms": _measure.summarise(swappable["base_ms"])}},
        [
            _measure.Target("the base over itself: how far its interval reaches from 1", "at most",
                            0.005, round(noise, 4)),
            at_most("swappable without an adapter over base", 1.02, "without"),
            at_most("swappable with rank 8 on q and v over base", 1.04, "with"),
            *(
                _measure.Target(f"batched, {length} tokens: share of the base's gain", "at least",
                                0.85, row["share"])
                for length, row in batched.items()
            ),
            _measure.Target("batched, 1 token: gain over groups", "at least", 3.0,
                            round(batched["1"]["gain"][0], 4)),
        ],
        found=found,
    )  # fmt: skip


if __name__ == "__main__":
    main()
