"""Build one model's graph from its config alone, and print what it took.

Usage: python _graph_build.py MODEL

Printed as JSON: seconds until the graph was traced and until it was whole, folded and serialized;
seconds of the imports before; nodes; bytes; the peak resident memory of the process.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from typing import Any

LLAMA_110M = {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 2048,
}  # fmt: skip
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
GEMMA_1B = {
    "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
}  # fmt: skip
T5_BASE = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert-base": ("bert", "BertConfig", {}, "text-classification"),
    "roberta-base": ("roberta", "RobertaConfig", ROBERTA, "text-classification"),
    "gpt2": ("gpt2", "GPT2Config", {}, "text-generation"),
    "llama-110m": ("llama", "LlamaConfig", LLAMA_110M, "text-generation"),
    "llama-2-7b": ("llama", "LlamaConfig", {}, "text-generation"),
    "gemma-3-1b": ("gemma3", "Gemma3TextConfig", GEMMA_1B, "text-generation"),
    "t5-base": ("t5", "T5Config", T5_BASE, "text2text-generation"),
}
"""Model: its package in transformers, its config's class, the settings that differ, the task."""


def main() -> None:
    start = time.perf_counter()
    import onnx
    import transformers

    from lora_export.core import targets
    from lora_export.graph import template_build as build
    from lora_export.graph.spec import tasks
    from lora_export.graph.spec.signature import Choices

    package, config_class, settings, task = MODELS[sys.argv[1]]
    importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    config = getattr(transformers, config_class)(**settings).to_dict()
    opset = targets.by_name(targets.DEFAULT_TARGET).opset
    traced_s: list[float] = []
    trace = build.trace

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = trace(*arguments, **named)
        traced_s.append(time.perf_counter() - began)
        return result

    build.trace = timed
    imported = time.perf_counter()
    template = build.build_template(config, tasks.by_name(task), "float32", opset, Choices())
    built = time.perf_counter()
    files = [template.onnx_bytes, *([template.encoder_bytes] if template.encoder_bytes else [])]
    result = {
        "imports_s": imported - start,
        "raw_s": sum(traced_s),
        "folded_s": built - imported,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "nodes": sum(len(onnx.load_model_from_string(each).graph.node) for each in files),
        "bytes": sum(map(len, files)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
