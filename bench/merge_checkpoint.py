"""``lora-export merge`` of a sharded 13 GB float16 checkpoint, against copying the same files.

The shape is Llama-2-7B's, the adapter has rank 16 on every linear layer. PEFT's
``merge_and_unload`` runs beside it on a size that it can hold, the Llama of 1.1 B parameters.
"""

from __future__ import annotations

import sys
from typing import Any

import _measure

CLAIM = "merge_checkpoint"
LARGE, SHORT, HELD = "llama-7b", "llama-7b-short", "llama-1b"
SHARD_BYTES, SHORT_SHARD_BYTES = 5 * 10**9, 5 * 10**8
METHOD = (
    "Each repetition runs in turn: a copy of the base's weight files to new files with read, write "
    "and fsync, timed inside its process; 'merge' of the adapter into that base, timed as a whole "
    "process, with its fingerprint, hashes, fidelity and fsync; then PEFT's merge_and_unload and "
    "save_pretrained of the smaller checkpoint, and ours of the same. What each wrote is removed, "
    "unmeasured; dirty pages are written out before each run. Weights are seeded random numbers."
)


def main() -> None:
    options = _measure.arguments(
        CLAIM, __doc__, short="two layers instead of 32 and no peers: to see that it runs"
    )
    with _measure.Session(CLAIM, options, peers=not options.short) as session:
        model, shard_bytes = (SHORT, SHORT_SHARD_BYTES) if options.short else (LARGE, SHARD_BYTES)
        base = session.generate("base", model, "base", seed=0, shard_bytes=shard_bytes)
        adapter = session.generate("adapter", model, "adapter", seed=1)
        files = sorted(base.glob("*.safetensors"))
        copies, merged, ours, theirs = (
            session.work / name for name in ("copies", "merged", "ours", "theirs")
        )

        def run_merge() -> _measure.Run:
            run = session.ours("merge", "--quiet", "--base", base, "--adapter", adapter,
                               "--out", merged)  # fmt: skip
            session.remove(merged)
            return run

        def run_copy() -> dict[str, float]:
            copies.mkdir()
            copied = session.answer([sys.executable, _measure.BENCH / "_copy.py", copies, *files])
            session.remove(copies)
            return copied

        merges, copy_s, peers, small = [], [], [], []
        measured_bytes = 0.0
        agreement = None
        if not options.short:
            held = session.generate("base", HELD, "held", seed=0)
            fitting = session.generate("adapter", HELD, "fitting", seed=1)
        for _ in session.repetitions():
            copied = run_copy()
            copy_s.append(copied["seconds"])
            measured_bytes = copied["bytes"]
            merges.append(run_merge())
            if options.short:
                continue
            peers.append(session.peer_merge(held, fitting, theirs, "AutoModelForCausalLM"))
            small.append(session.ours("merge", "--quiet", "--base", held, "--adapter", fitting,
                                      "--out", ours))  # fmt: skip
            if agreement is None:
                script = _measure.BENCH / "_compare_checkpoints.py"
                agreement = session.answer([sys.executable, script, ours, theirs])
                assert agreement["relative_l2"] < 1e-3, agreement
            session.remove(ours, theirs)

        _report(session, merges, copy_s, peers, small, weight_bytes=int(measured_bytes),
                model=model, files=len(files), agreement=agreement)  # fmt: skip


def _report(
    session: _measure.Session,
    merges: list[_measure.Run],
    copy_s: list[float],
    peers: list[_measure.Run],
    small: list[_measure.Run],
    *,
    weight_bytes: int,
    **more: Any,
) -> None:
    speeds = [weight_bytes / each / 1e6 for each in _measure.walls(merges)]
    copy_speeds = [weight_bytes / each / 1e6 for each in copy_s]
    measured = {
        "merge": {**_measure.summarise_runs(merges), "mb_per_s": _measure.summarise(speeds)},
        "copy with fsync": {
            "wall_s": _measure.summarise(copy_s),
            "mb_per_s": _measure.summarise(copy_speeds),
        },
    }
    if peers:
        measured["peers, 1.1 B"] = _measure.summarise_runs(peers)
        measured["merge, 1.1 B"] = _measure.summarise_runs(small)
    session.report(
        "Merging one adapter (rank 16, all linear layers) into a sharded float16 checkpoint",
        METHOD,
        measured,
        [
            _measure.median_target("peak memory of merge in MB", 500,
                                   _measure.peaks_mb(merges)),
            _measure.ratio_target("merge's speed over the copy's", "at least", 0.5,
                                  speeds, copy_speeds),
        ],
        weight_bytes=weight_bytes,
        **more,
        ratios=[
            _measure.ratio(_measure.walls(peers), _measure.walls(small),
                           "PEFT's wall time over ours, 1.1 B"),
            _measure.ratio(_measure.peaks_mb(peers), _measure.peaks_mb(small),
                           "PEFT's peak memory over ours, 1.1 B"),
        ] if peers else [],
    )  # fmt: skip


if __name__ == "__main__":
    main()
