"""Outputs and times of a peer's graph, against the unmerged adapter and against our graph.

Run in our environment, which has PEFT and ONNX Runtime; prints one JSON document.

Usage: python _peer_graph.py reference BASE ADAPTER AUTO_CLASS FILE.npz
       python _peer_graph.py compare FILE.npz GRAPH.onnx [OURS.onnx]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_SHAPE = (2, 24)
_LENGTH = 128
_ROUNDS = 30
_WARM_UP = 5


def reference(base: str, adapter: str, auto_class: str, file: str) -> dict[str, Any]:
    """Run the adapter unmerged in PEFT on seeded inputs, and keep both."""
    import torch
    import transformers
    from peft import PeftModel

    model = getattr(transformers, auto_class).from_pretrained(base, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(model, adapter).eval()
    ids = np.random.default_rng(0).integers(3, 1000, _SHAPE)
    with torch.inference_mode():
        logits = wrapped(input_ids=torch.from_numpy(ids)).logits.numpy()
        plain = wrapped.get_base_model()
        with wrapped.disable_adapter():
            unadapted = plain(input_ids=torch.from_numpy(ids)).logits.numpy()
    effect = float(np.linalg.norm(unadapted - logits) / np.linalg.norm(logits))
    np.savez(file, ids=ids, logits=logits)
    return {"effect": effect}


def compare(file: str, graph: str, ours: str | None = None) -> dict[str, Any]:
    """Return the error of a graph, and its time beside ours."""
    import onnxruntime

    kept = np.load(file)
    graphs = {"graph": graph, **({"ours": ours} if ours else {})}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = {
        name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for name, path in graphs.items()
    }
    session = sessions["graph"]
    found: dict[str, Any] = {"outputs": [each.name for each in session.get_outputs()][:1]}
    try:
        first = session.run(None, _feeds(session, kept["ids"]))[0]
    except Exception as error:  # noqa: BLE001  (whatever a peer's graph does wrong is a finding)
        found["fails"] = (str(error).splitlines() or [""])[0]
        first = np.zeros(0)
    if first.shape == kept["logits"].shape:
        error = np.linalg.norm(first.astype(np.float64) - kept["logits"])
        found["relative_l2"] = float(error / np.linalg.norm(kept["logits"]))
    ids = np.random.default_rng(1).integers(3, 1000, (1, _LENGTH))
    times = _times({name: (each, _feeds(each, ids)) for name, each in sessions.items()})
    found["median_ms"] = {name: float(np.median(each)) for name, each in times.items()}
    if ours:
        ratios = times["graph"] / times["ours"]
        picks = np.random.default_rng(0).integers(0, _ROUNDS, (2000, _ROUNDS))
        low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
        found["ratio"] = float(np.median(ratios))
        found["ratio_interval"] = [float(low), float(high)]
    return found


def _times(runs: dict[str, tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """Return the times in ms of each session, interleaved in random order."""
    chance = np.random.default_rng(2)
    times = {name: np.empty(_ROUNDS) for name in runs}
    for index in range(-_WARM_UP, _ROUNDS):
        for name in chance.permutation(list(runs)):
            session, feeds = runs[name]
            start = time.perf_counter_ns()
            session.run(None, feeds)
            if index >= 0:
                times[name][index] = (time.perf_counter_ns() - start) / 1e6
    return times


def _feeds(session: Any, ids: Any) -> dict[str, Any]:
    """Return inputs for `ids`: everything counts, the past is empty."""
    batch, length = ids.shape
    positions = np.broadcast_to(np.arange(length), ids.shape)
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": positions,
        "token_type_ids": np.zeros_like(ids),
    }
    feeds = {}
    for each in session.get_inputs():
        dtype = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}.get(each.type, np.float32)
        if each.name in known:
            feeds[each.name] = known[each.name].astype(dtype)
        else:  # keys and values [batch, heads, past, width]
            _, heads, _, width = each.shape
            feeds[each.name] = np.zeros((batch, heads, 0, width), dtype)
    return feeds


def main() -> None:
    kind, *arguments = sys.argv[1:]
    result = {"reference": reference, "compare": compare}[kind](*arguments)
    print(json.dumps(result))


if __name__ == "__main__":
    assert Path(sys.argv[2]).exists(), sys.argv[2]
    main()
