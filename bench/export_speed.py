"""From a config to a graph: seconds until it is traced, and until it is folded; peak memory."""

from __future__ import annotations

import statistics
import sys
from typing import Any

import _measure

CLAIM = "export_speed"
TWELVE_LAYERS = ("bert-base", "roberta-base", "gpt2", "llama-110m")
DEEP = "llama-2-7b"
FURTHER = ("gemma-3-1b", "t5-base")
TWELVE_LIMIT_S = 10.0
RAW_LIMIT_S, FOLDED_LIMIT_S, PEAK_LIMIT_MB = 25.0, 40.0, 1000.0
QUANTITIES = ("imports_s", "raw_s", "folded_s", "peak_mb")
METHOD = (
    "Configs alone, no weights and no graph cache; float32, the default target's opset, decoders "
    "with their cache. One process a model, in turn. 'imports_s' are torch, transformers, the "
    "model's module and the exporter; 'raw_s' follows and ends when torch's exporter has returned "
    "the graph of the layers that are traced; 'folded_s' begins with it and ends with the whole "
    "graph, folded, its layers stamped, serialized. 'peak_mb' is the process's, imports included. "
    "gemma-3-1b has layers of two kinds; t5-base is two graphs."
)


def main() -> None:
    options = _measure.arguments(CLAIM, str(__doc__))
    with _measure.Session(CLAIM, options, peers=False) as session:
        models = (*TWELVE_LAYERS, DEEP, *FURTHER)
        samples: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
        session.python("-c", "import torch, transformers, accelerate, onnxscript, onnx_ir")
        for _ in session.repetitions():
            for model in models:
                samples[model].append(
                    session.answer([sys.executable, _measure.BENCH / "_graph_build.py", model])
                )
        columns = {
            model: {name: [run[name] for run in runs] for name in QUANTITIES}
            for model, runs in samples.items()
        }
        targets = [
            _measure.median_target(
                f"{model}: seconds to the folded graph", TWELVE_LIMIT_S, columns[model]["folded_s"]
            )
            for model in TWELVE_LAYERS
        ]
        deep = columns[DEEP]
        targets += [
            _measure.median_target(f"{DEEP}: seconds, raw", RAW_LIMIT_S, deep["raw_s"]),
            _measure.median_target(f"{DEEP}: seconds, folded", FOLDED_LIMIT_S, deep["folded_s"]),
            _measure.median_target(f"{DEEP}: peak MB", PEAK_LIMIT_MB, deep["peak_mb"]),
        ]
        session.report(
            str(__doc__),
            METHOD,
            {
                model: {name: _measure.summarise(values) for name, values in each.items()}
                for model, each in columns.items()
            },
            targets,
            graphs={
                model: {name: statistics.median(run[name] for run in runs)
                        for name in ("nodes", "bytes")}
                for model, runs in samples.items()
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
