"""RoBERTa-base with a LoRA of rank 8 on query and value, three labels: ours against the peers.

Ours: ``lora-export merge-and-build --no-verify`` with an empty graph cache, one process.
Peers: PEFT's ``merge_and_unload`` and ``save_pretrained``, then ``optimum-cli export onnx``, two
processes. The peers' export is also run without its validation, as a second point of reference.
"""

from __future__ import annotations

import _measure

CLAIM = "roberta_base"
MODEL = "roberta-base"
TASK = "text-classification"
AUTO_CLASS = "AutoModelForSequenceClassification"
METHOD = (
    "Random weights, seeded. Repetitions are interleaved (peers, ours, peers, ours, …) after one "
    "unmeasured run of each. Peers: two processes, seconds added, the larger peak; optimum-cli "
    "validates its graph with ONNX Runtime and cannot be told not to, so the same export through "
    "its Python function with do_validation=False is given too. Ours writes, syncs and hashes "
    "every file, the unadapted base graph included; the graph cache is empty each time. "
    "'agreement' compares the outputs of both graphs in ONNX Runtime on the same inputs."
)


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__)
    with _measure.Session(CLAIM, options) as session:
        base = session.generate("base", MODEL, "base", seed=0)
        adapter = session.generate("adapter", MODEL, "adapter", seed=1)
        merged, peers_out, unchecked_out, ours_out = (
            session.work / name for name in ("merged", "peers", "unchecked", "ours")
        )
        cache = session.work / "empty-cache"

        def run_ours() -> _measure.Run:
            return session.ours(
                "merge-and-build", "--no-verify", "--base", base, "--adapter", f"tenant={adapter}",
                "--out", ours_out, cache=cache,
            )  # fmt: skip

        def run_merge() -> _measure.Run:
            return session.peer_merge(base, adapter, merged, AUTO_CLASS)

        def run_export() -> _measure.Run:
            return session.peer_export(merged, peers_out, TASK)

        _measure.warm_up(run_merge, run_export, run_ours)
        agreement = session.compare("graphs", peers_out / "model.onnx", ours_out / "tenant.onnx")
        session.remove(merged, peers_out, ours_out, cache)

        merges, exports, unchecked, ours = [], [], [], []
        for _ in session.repetitions():
            merges.append(run_merge())
            exports.append(run_export())
            ours.append(run_ours())
            unchecked.append(session.peer_export_unchecked(merged, unchecked_out, TASK))
            session.remove(merged, peers_out, unchecked_out, ours_out, cache)

        peers = [merge + export for merge, export in zip(merges, exports, strict=True)]
        fast_peers = [merge + export for merge, export in zip(merges, unchecked, strict=True)]
        assert agreement["relative_l2"] < 1e-4, agreement
        session.report(
            "PEFT adapter and RoBERTa-base checkpoint to ONNX, whole processes",
            METHOD,
            {
                "ours": _measure.summarise_runs(ours),
                "peers": _measure.summarise_runs(peers),
                "peers, merge": _measure.summarise_runs(merges),
                "peers, export": _measure.summarise_runs(exports),
                "peers without validation": _measure.summarise_runs(fast_peers),
            },
            [
                _measure.ratio_target("wall time over the peers'", "at most", 0.6,
                                      _measure.walls(ours), _measure.walls(peers)),
                _measure.ratio_target("peak memory over the peers'", "at most", 0.3,
                                      _measure.peaks_mb(ours), _measure.peaks_mb(peers)),
            ],
            beside_the_targets=[
                _measure.ratio(_measure.walls(ours), _measure.walls(fast_peers),
                               "wall time over the peers' without validation"),
                _measure.ratio(_measure.peaks_mb(ours), _measure.peaks_mb(fast_peers),
                               "peak memory over the peers' without validation"),
            ],
            agreement=agreement,
        )  # fmt: skip


if __name__ == "__main__":
    main()
