"""A Llama of 1.1 billion parameters in float16 with a LoRA of rank 16 on every linear layer.

Ours: ``merge-and-build --no-verify`` with an empty graph cache. Peers: PEFT's merge, then
``optimum-cli export onnx``, with a KV cache (their usual task) and without one.
"""

from __future__ import annotations

from typing import Any

import _measure

CLAIM = "llama_1b"
MODEL = "llama-1b"
AUTO_CLASS = "AutoModelForCausalLM"
WITH_CACHE = "text-generation-with-past"
WITHOUT_CACHE = "text-generation"
UNCHECKED = "no cache, without validation"
PEERS = ("KV cache", "no cache", UNCHECKED)
METHOD = (
    "TinyLlama's config, random weights, seeded; the checkpoint and both sides' libraries are in "
    "the page cache. The peers' merge is measured once per repetition and counted in each of their "
    "rows. optimum-cli writes float32 from a float16 checkpoint on a CPU and validates its graph "
    "with ONNX Runtime; 'without validation' is its Python function with do_validation=False. "
    "Ours keeps float16, and writes, syncs and hashes every file, the unadapted base included. "
    "'agreement' compares each merged tensor with PEFT's (which rounds the update to float16 "
    "before adding it)."
)
NOTE_WITHOUT_CACHE = (
    "This version exports decoders without a KV cache, the peers' usual task has one: the rows "
    "'no cache' are the like-for-like comparison, and both are given."
)


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=1)
    with _measure.Session(CLAIM, options) as session:
        base = session.generate("base", MODEL, "base", seed=0)
        adapter = session.generate("adapter", MODEL, "adapter", seed=1)
        merged, peers_out, ours_out, cache = (
            session.work / name for name in ("merged", "peers", "ours", "empty-cache")
        )
        _measure.warm_up(session.warm_libraries)

        peers: dict[str, list[_measure.Run]] = {name: [] for name in PEERS}
        merges, ours = [], []
        for _ in session.repetitions():
            merge = session.peer_merge(base, adapter, merged, AUTO_CLASS)
            merges.append(merge)
            for name, export, task in (
                ("KV cache", session.peer_export, WITH_CACHE),
                ("no cache", session.peer_export, WITHOUT_CACHE),
                (UNCHECKED, session.peer_export_unchecked, WITHOUT_CACHE),
            ):
                peers[name].append(merge + export(merged, peers_out, task))
                session.remove(peers_out)
            ours.append(
                session.ours(
                    "merge-and-build", "--no-verify", "--base", base,
                    "--adapter", f"tenant={adapter}", "--out", ours_out, cache=cache,
                )
            )  # fmt: skip
            agreement = session.compare("tensors", merged, ours_out, "tenant")
            inputs = session.compare("inputs", ours_out / "tenant.onnx")["inputs"]
            session.remove(merged, ours_out, cache)

        assert agreement["largest_relative_l2"] < 2e-3, agreement
        has_cache = any("past" in name or "cache" in name for name in inputs)
        _report(session, ours, merges, peers, has_cache=has_cache, agreement=agreement)


def _report(
    session: _measure.Session,
    ours: list[_measure.Run],
    merges: list[_measure.Run],
    peers: dict[str, list[_measure.Run]],
    *,
    has_cache: bool,
    agreement: dict[str, Any],
) -> None:
    session.report(
        "PEFT adapter and a Llama 1.1B float16 checkpoint to ONNX, whole processes",
        METHOD,
        {
            "ours": _measure.summarise_runs(ours),
            "peers, merge": _measure.summarise_runs(merges),
            **{f"peers, {name}": _measure.summarise_runs(runs) for name, runs in peers.items()},
        },
        [
            _measure.median_target("peak memory in MB", 900, _measure.peaks_mb(ours)),
            *(
                _measure.ratio_target(f"wall time over the peers', {name}", "at most", 0.5,
                                      _measure.walls(ours), _measure.walls(peers[name]))
                for name in ("KV cache", "no cache")
            ),
        ],
        beside_the_targets=[
            *(
                _measure.ratio(_measure.peaks_mb(ours), _measure.peaks_mb(runs),
                               f"peak memory over the peers', {name}")
                for name, runs in peers.items()
            ),
            _measure.ratio(_measure.walls(ours), _measure.walls(peers[UNCHECKED]),
                           f"wall time over the peers', {UNCHECKED}"),
        ],
        ours_has_kv_cache=has_cache,
        note=None if has_cache else NOTE_WITHOUT_CACHE,
        agreement=agreement,
    )  # fmt: skip


if __name__ == "__main__":
    main()
