"""Two graphs timed in turn within one process, for `quantized_export.py`; prints JSON.

Usage: _graph_pair.py FLOAT.onnx QUANTIZED.onnx TOKENS PAST ROUNDS

Inputs and outputs are bound, as a generation loop binds them: `InferenceSession.run` would copy a
decoder's whole cache into NumPy arrays after every step, which no loop needs.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import numpy as np
import onnxruntime

from lora_export.ondevice.judge.ratios import bootstrap_ratio
from lora_export.ondevice.judge.timing import Interleaved


def opened(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds_of(session: onnxruntime.InferenceSession, tokens: int, past: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    sizes = {"sequence": tokens, "past_sequence": past, "total_sequence": tokens + past, "batch": 1}
    feeds: dict[str, Any] = {}
    for each in session.get_inputs():
        shape = [sizes[axis] if isinstance(axis, str) and axis in sizes else axis
                 for axis in each.shape]  # fmt: skip
        shape = [tokens + past if axis == "past_sequence + sequence" else axis for axis in shape]
        if each.name == "position_ids":
            feeds[each.name] = np.arange(past, past + tokens)[None]
        elif each.name == "input_ids":
            feeds[each.name] = random.integers(5, 5000, shape)
        elif "int64" in each.type:
            feeds[each.name] = np.ones(shape, np.int64)
        else:
            kind = np.float16 if "float16" in each.type else np.float32
            feeds[each.name] = random.standard_normal(shape).astype(kind)
    return feeds


def bound(session: onnxruntime.InferenceSession, feeds: dict[str, Any]) -> onnxruntime.IOBinding:
    """Return a binding of the feeds and of outputs that stay in ONNX Runtime's memory."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    for each in session.get_outputs():
        binding.bind_output(each.name, "cpu")
    return binding


def main(plain: str, quantized: str, tokens: int, past: int, rounds: int) -> None:
    sessions = {"float": opened(plain), "quantized": opened(quantized)}
    feeds = feeds_of(sessions["float"], tokens, past)
    runs = {
        name: partial(each.run_with_iobinding, bound(each, feeds))
        for name, each in sessions.items()
    }
    measurement = Interleaved(runs, seed=0)
    measurement.warm_up()
    measurement.extend(rounds)
    ms = measurement.times_ms
    times, interval = bootstrap_ratio(ms["quantized"], ms["float"], seed=0)
    row = {name: each.tolist() for name, each in ms.items()}
    print(json.dumps({"ms": row, "times_as_fast": times, "interval": interval}))


if __name__ == "__main__":
    words = sys.argv[1:]
    main(*words[:2], *map(int, words[2:]))
