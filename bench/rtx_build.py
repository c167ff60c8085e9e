"""Engines of TensorRT for RTX: size over the weights, seconds, peak memory over the estimate."""

from __future__ import annotations

import json
import statistics
from typing import Any

import _measure

from lora_export.engines.ahead_of_time import build_memory_bytes, weight_bytes

CLAIM = "rtx_build"
MODELS = {
    "roberta-base, float32": ("roberta-base", "float32"),
    "roberta-base, float16": ("roberta-base", "float16"),
    "llama-110m, float32": ("llama-110m", "float32"),
    "llama-110m, float16": ("llama-110m", "float16"),
    "llama-1b, float16": ("llama-1b", "float16"),
}
METHOD = (
    "Random weights, one adapter, merged; 'build --target rtx' as a whole process, without a GPU. "
    "Weights are the initializers of the graph that is built, the engine's bytes are those of its "
    "plan, the peak is the process's. The estimate is what the command compares with the memory "
    "that is available before it starts."
)
SIZE_FACTOR, SIZE_SLACK_MB = 1.03, 10.0
ESTIMATE_LIMIT = 0.3


def main() -> None:
    """Build each model's engine as often as is asked for, and write the results."""
    options = _measure.arguments(CLAIM, str(__doc__), repeat=1)
    with _measure.Session(CLAIM, options, peers=False) as session:
        rows: dict[str, dict[str, Any]] = {}
        facts: dict[str, dict[str, float]] = {}
        targets: list[_measure.Target] = []
        for label, (model, dtype) in MODELS.items():
            base = session.generate("base", model, "base", seed=0)
            adapter = session.generate("adapter", model, "adapter", seed=1)
            export = session.work / "export"
            session.ours(
                "merge-and-build", "--no-verify", "--target", "rtx", "--dtype", dtype,
                "--base", base, "--adapter", f"one={adapter}", "--out", export,
            )  # fmt: skip
            runs = [session.ours("build", export, "--target", "rtx") for _ in session.repetitions()]
            (record,) = (export / "engines").glob("*.json")
            built = json.loads(record.read_text("utf-8"))
            graph = (export / "one.onnx").read_bytes()
            weights_mb, estimate_mb = weight_bytes(graph) / 1e6, build_memory_bytes(graph) / 1e6
            engine_mb = built["plan"]["bytes"] / 1e6
            peak_mb = statistics.median(_measure.peaks_mb(runs))
            limit_mb = SIZE_FACTOR * weights_mb + SIZE_SLACK_MB
            targets += [
                _measure.Target(f"{label}: engine MB", "at most", limit_mb, engine_mb),
                _measure.Target(
                    f"{label}: the estimate off the peak, as a share of it",
                    "at most",
                    ESTIMATE_LIMIT,
                    abs(estimate_mb - peak_mb) / peak_mb,
                ),
            ]
            rows[label] = {
                **_measure.summarise_runs(runs),
            }
            facts[label] = {
                "weights_mb": weights_mb,
                "engine_mb": engine_mb,
                "estimate_mb": estimate_mb,
                "build_s": built["seconds"],
            }
            session.remove(base, adapter, export)
        session.report(str(__doc__), METHOD, rows, targets, engines=facts)


if __name__ == "__main__":
    main()
