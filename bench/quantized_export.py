"""Weights of four and eight bits: what quantizing costs while merging, and what it gains.

Llama's shapes of 13.5 GB and 1.1 B parameters are exported with an adapter in float16 and with
``--quantize int4``; graphs of 110 M parameters and of RoBERTa-base are timed in ONNX Runtime.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import _measure

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = "quantized_export"
LARGE, SHORT, HELD = "llama-7b", "llama-7b-short", "llama-1b"
DECODER, CLASSIFIER = "llama-110m", "roberta-base"
DECODE: Final = (1, 512)
TEXT: Final = (128, 0)
METHOD = (
    "Each repetition exports the base with its adapter (rank 16 on all linear layers, merged) in "
    "float16 and with --quantize int4, as whole processes without verification, the traced graph "
    "in the cache; what each wrote is removed, unmeasured. Speed of the merge is the checkpoint's "
    "bytes over the seconds. Graphs: one process with two threads, ONNX Runtime's default session "
    "(integer products with activations of eight bits), runs interleaved in random order, medians "
    "of paired ratios with bootstrap intervals: a decoder's step of one token behind 512, and a "
    "classifier of 1 x 128 tokens. Weights are seeded random numbers."
)


def main() -> None:
    options = _measure.arguments(
        CLAIM, __doc__, short="two layers instead of 32, and fewer rounds: to see that it runs"
    )
    with _measure.Session(CLAIM, options, peers=False) as session:
        sizes = {"13.5 GB": SHORT if options.short else LARGE}
        if not options.short:
            sizes["1.1 B"] = HELD
        measured: dict[str, Any] = {}
        targets: list[_measure.Target] = []
        found: dict[str, Any] = {}
        for title, model in sizes.items():
            runs, written = _exports(session, model)
            measured |= {f"{title}, {kind}": _measure.summarise_runs(r) for kind, r in runs.items()}
            found[title] = written
            targets += _export_targets(title, runs)
        rounds = 40 if options.short else 200
        for title, row, least in (
            ("decode at 512, int4", _timed(session, DECODER, "int4", DECODE, rounds), 2.8),
            ("1 x 128, int8", _timed(session, CLASSIFIER, "int8", TEXT, rounds), 1.3),
        ):
            measured |= {f"{title}, {kind}": {"ms": _measure.summarise(ms)}
                         for kind, ms in row.pop("ms").items()}  # fmt: skip
            found[title] = row
            low, high = row["interval"]
            targets.append(
                _measure.Target(
                    f"{title}: times as fast as float32",
                    "at least",
                    least,
                    round(row["times_as_fast"], 3),
                    (round(low, 3), round(high, 3)),
                )
            )
        session.report(
            "Quantized exports with a merged adapter", METHOD, measured, targets, found=found
        )


def _exports(
    session: _measure.Session, model: str
) -> tuple[dict[str, list[_measure.Run]], dict[str, int]]:
    """Export a model in both forms; return the runs and the bytes of the base's weights."""
    base = session.generate("base", model, f"base-{model}", seed=0)
    adapter = session.generate("adapter", model, f"adapter-{model}", seed=1)
    runs: dict[str, list[_measure.Run]] = {"float16": [], "int4": []}
    written: dict[str, int] = {}
    for repetition in range(-1, session.repeat):
        for kind, own in runs.items():
            out = session.work / "export"
            run = _export(session, base, adapter, out, *(["--quantize", kind] * (kind == "int4")))
            written[kind] = (out / "weights" / "base.safetensors").stat().st_size
            session.remove(out)
            if repetition >= 0:  # the first one traces
                own.append(run)
    session.remove(base)
    return runs, written


def _export(
    session: _measure.Session, base: Path, adapter: Path, out: Path, *more: str
) -> _measure.Run:
    return session.ours(
        "export", "--quiet", "--base", base, "--adapter", f"one={adapter}", "--out", out, *more,
        cache=session.work / "cache",
    )  # fmt: skip


def _export_targets(title: str, runs: dict[str, list[_measure.Run]]) -> list[_measure.Target]:
    seconds = {kind: _measure.walls(each) for kind, each in runs.items()}
    limit, longest = (600, 1 / 0.35) if title == "13.5 GB" else (900, 1.4)
    return [
        _measure.median_target(
            f"{title}: peak memory of the int4 export in MB", limit, _measure.peaks_mb(runs["int4"])
        ),
        _measure.ratio_target(
            f"{title}: seconds of the int4 export over the float export's", "at most",
            round(longest, 2), seconds["int4"], seconds["float16"],
        ),
    ]  # fmt: skip


def _timed(
    session: _measure.Session, model: str, scheme: str, shape: tuple[int, int], rounds: int
) -> dict[str, Any]:
    """Time a float32 graph and its quantized copy in turn."""
    base = session.generate("base", model, f"timed-{model}", seed=0)
    plain, quantized = (session.work / f"{model}-{kind}" for kind in ("float", scheme))
    session.ours("export", "--quiet", "--base", base, "--dtype", "float32", "--out", plain)
    session.ours("quantize", "--quiet", plain, "--weights", scheme, "--out", quantized)
    script = _measure.BENCH / "_graph_pair.py"
    graphs = [str(each / "base.onnx") for each in (plain, quantized)]
    row = session.answer([sys.executable, script, *graphs, *map(str, shape), str(rounds)])
    row["bytes"] = {
        each.name: sum(file.stat().st_size for file in (each / "weights").iterdir())
        for each in (plain, quantized)
    }
    return row


if __name__ == "__main__":
    main()
