"""Time two graphs of one model in one process, pair by pair in random order; prints JSON.

Usage: python _paired.py PEER.onnx OURS.onnx LENGTH PAST PAIRS

A second session of the peer's graph is timed with them: what its ratio shows is noise.
"""

from __future__ import annotations

import functools
import json
import sys
import zlib
from typing import Any

import numpy as np
import onnx
import onnxruntime

from lora_export.ondevice.judge.ratios import bootstrap_ratio
from lora_export.ondevice.judge.timing import Interleaved

_IDS = 1000


def open_session(path: str) -> onnxruntime.InferenceSession:
    """Open a graph as the runtime does by default."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def make_feeds(session: onnxruntime.InferenceSession, length: int, past: int) -> dict[str, Any]:
    """Return one row of tokens, and a past that depends on the inputs' names only."""
    ids = np.random.default_rng(0).integers(3, _IDS, (1, length))
    text = {
        "input_ids": ids,
        "attention_mask": np.ones((1, length + past), np.int64),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.arange(past, past + length)[None],
    }
    feeds: dict[str, Any] = {}
    for value in session.get_inputs():
        if value.name in text:
            feeds[value.name] = text[value.name]
            continue
        generator = np.random.default_rng(zlib.crc32(value.name.encode()))
        heads, width = value.shape[1], value.shape[3]
        feeds[value.name] = generator.standard_normal((1, heads, past, width), np.float32)
    return feeds


def node_count(path: str) -> int:
    """Return the nodes of a graph, constants not counted."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type not in {"Constant", "Identity"} for node in nodes)


def main() -> None:
    peer, ours = sys.argv[1:3]
    length, past, pairs = map(int, sys.argv[3:])
    paths = {"peer": peer, "ours": ours, "peer_again": peer}
    sessions = {name: open_session(path) for name, path in paths.items()}
    feeds = {name: make_feeds(session, length, past) for name, session in sessions.items()}
    first = {name: session.run(None, feeds[name])[0] for name, session in sessions.items()}
    scale = float(np.abs(first["peer"]).max())
    measurement = Interleaved(
        {
            name: functools.partial(session.run, None, feeds[name])
            for name, session in sessions.items()
        },
        seed=0,
    )
    measurement.warm_up()
    measurement.extend(pairs)
    samples = measurement.times_ms
    result: dict[str, Any] = {
        "samples_ms": {name: [round(v, 3) for v in values] for name, values in samples.items()},
        "max_relative_difference": float(np.abs(first["ours"] - first["peer"]).max()) / scale,
        "nodes": {"peer": node_count(peer), "ours": node_count(ours)},
    }
    for what, name in (("ours_over_peer", "ours"), ("peer_over_itself", "peer_again")):
        ratio, interval = bootstrap_ratio(samples["peer"], samples[name], seed=0)
        result[what] = {
            "median": round(ratio, 4), "interval": [round(each, 4) for each in interval],
        }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
