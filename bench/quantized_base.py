"""``lora-export merge`` and ``inspect --hash`` of a checkpoint that is stored in NF4.

The shape is Llama-2-7B's: 3.9 GB in four bits, 13.5 GB as the floats that it stands for. The
adapter has rank 16 on every linear layer.
"""

from __future__ import annotations

import _measure

CLAIM = "quantized_base"
LARGE, SHORT = "llama-7b", "llama-7b-short"
METHOD = (
    "Each repetition runs 'merge' of the adapter into the base, and 'inspect --hash', which reads "
    "what is stored and then all values in float32, each as a whole process. What was merged is "
    "removed, unmeasured. Codes are seeded random numbers."
)


def main() -> None:
    options = _measure.arguments(
        CLAIM, __doc__, short="two layers instead of 32: to see that it runs"
    )
    with _measure.Session(CLAIM, options, peers=False) as session:
        model = SHORT if options.short else LARGE
        base, merged = session.work / "quantized", session.work / "merged"
        session.python(_measure.BENCH / "_quantized_base.py", model, base)
        adapter = session.generate("adapter", model, "adapter", seed=1)
        merges, hashes = [], []
        for _ in session.repetitions():
            merges.append(session.ours("merge", "--quiet", "--base", base, "--adapter", adapter,
                                       "--out", merged))  # fmt: skip
            merged_bytes = sum(path.stat().st_size for path in merged.glob("*.safetensors"))
            session.remove(merged)
            hashes.append(session.ours("inspect", "--quiet", "--hash", base))
        stored_bytes = (base / "model.safetensors").stat().st_size
        session.report(
            "Reading a base that is stored in NF4, block by block",
            METHOD,
            {
                "merge": _measure.summarise_runs(merges),
                "inspect --hash": _measure.summarise_runs(hashes),
            },
            [
                _measure.median_target(f"peak memory of {what} in MB", 300, _measure.peaks_mb(runs))
                for what, runs in (("merge", merges), ("inspect --hash", hashes))
            ],
            model=model,
            stored_bytes=stored_bytes,
            merged_bytes=merged_bytes,
        )


if __name__ == "__main__":
    main()
