"""RoBERTa-base with a LoRA of rank 8 on query and value, three labels: ours against the peers.

Ours: ``lora-export merge-and-build --no-verify`` with an empty graph cache, one process: with the
graph from a template, as for every known architecture, and traced, as for an unknown one.
Peers: PEFT's ``merge_and_unload`` and ``save_pretrained``, then ``optimum-cli export onnx``, two
processes. The peers' export is also run without its validation, as a second point of reference.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING

import _measure

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = "roberta_base"
MODEL = "roberta-base"
TASK = "text-classification"
AUTO_CLASS = "AutoModelForSequenceClassification"
METHOD = (
    "Random weights, seeded. Repetitions are interleaved (peers, ours, peers, ours, …) after one "
    "unmeasured run of each. Peers: two processes, seconds added, the larger peak; optimum-cli "
    "validates its graph with ONNX Runtime and cannot be told not to, so the same export through "
    "its Python function with do_validation=False is given too. Ours writes, syncs and hashes "
    "every file, the unadapted base graph included; the graph cache is empty each time. 'ours, "
    "traced' is the same checkpoint with a key in its config that no template knows. "
    "'agreement' compares the outputs of both graphs in ONNX Runtime on the same inputs."
)


def unknown(base: Path, folder: Path) -> Path:
    """Return a copy of a checkpoint whose config has a key that no template knows."""
    folder.mkdir()
    for file in base.iterdir():
        if file.name == "config.json":
            config = {**json.loads(file.read_text()), "no_template_knows_this": True}
            (folder / file.name).write_text(json.dumps(config))
        else:
            os.link(file, folder / file.name)
    return folder


def targets_of(
    ours: list[_measure.Run], traced: list[_measure.Run], peers: list[_measure.Run]
) -> list[_measure.Target]:
    """Return seconds and memory over the peers', with a template and traced."""
    return [
        _measure.ratio_target(f"{what} over the peers'", "at most", limit, read(runs), read(peers))
        for what, limit, read, runs in (
            ("wall time", 0.1, _measure.walls, ours),
            ("peak memory", 0.05, _measure.peaks_mb, ours),
            ("wall time, traced,", 0.4, _measure.walls, traced),
            ("peak memory, traced,", 0.2, _measure.peaks_mb, traced),
        )
    ]


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__)
    with _measure.Session(CLAIM, options) as session:
        base, adapter = (
            session.generate(kind, MODEL, kind, seed=n)
            for n, kind in enumerate(("base", "adapter"))
        )
        merged, peers_out, unchecked_out, ours_out, cache = (
            session.work / name for name in ("merged", "peers", "unchecked", "ours", "empty-cache")
        )
        untemplated = unknown(base, session.work / "unknown")

        def run_ours(checkpoint: Path = base) -> _measure.Run:
            session.remove(cache)
            return session.ours(
                "merge-and-build", "--no-verify", "--no-latency", "--base", checkpoint,
                "--adapter", f"tenant={adapter}", "--out", ours_out, cache=cache,
            )  # fmt: skip

        run_merge = partial(session.peer_merge, base, adapter, merged, AUTO_CLASS)
        run_export = partial(session.peer_export, merged, peers_out, TASK)

        _measure.warm_up(run_merge, run_export, run_ours)
        agreement = session.compare("graphs", peers_out / "model.onnx", ours_out / "tenant.onnx")
        assert agreement["relative_l2"] < 1e-4, agreement
        session.remove(merged, peers_out, ours_out)

        merges, exports, unchecked, ours, traced = ([] for _ in range(5))
        for _ in session.repetitions():
            merges.append(run_merge())
            exports.append(run_export())
            ours.append(run_ours())
            session.remove(ours_out)
            traced.append(run_ours(untemplated))
            unchecked.append(session.peer_export_unchecked(merged, unchecked_out, TASK))
            session.remove(merged, peers_out, unchecked_out, ours_out)

        peers, fast_peers = (
            [merge + export for merge, export in zip(merges, each, strict=True)]
            for each in (exports, unchecked)
        )
        session.report(
            "PEFT adapter and RoBERTa-base checkpoint to ONNX, whole processes",
            METHOD,
            {
                name: _measure.summarise_runs(runs)
                for name, runs in (
                    ("ours", ours), ("ours, traced", traced), ("peers", peers),
                    ("peers, merge", merges), ("peers, export", exports),
                    ("peers without validation", fast_peers),
                )
            },
            targets_of(ours, traced, peers),
            beside_the_targets=[
                _measure.ratio(read(ours), read(fast_peers),
                               f"{what} over the peers' without validation")
                for what, read in (("wall time", _measure.walls),
                                   ("peak memory", _measure.peaks_mb))
            ],
            agreement=agreement,
        )  # fmt: skip


if __name__ == "__main__":
    main()
