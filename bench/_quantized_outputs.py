"""KL, changed answers and accuracy of quantized graphs; prints JSON, for `quantized_peers.py`.

Usage: _quantized_outputs.py intents|python HF_FOLDER FLOAT.onnx NAME=GRAPH.onnx ...

intents: 800 held-out sentences; KL of the classes, accuracy, predictions that changed.
python: modules of the standard library that the model was not trained on; KL of the next token,
share of equal best tokens. All of it in ONNX Runtime's default session, against the float graph.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from _peer_texts import labelled_sentences, python_modules

BATCH: Final = 16


def main() -> None:
    kind, folder, exact, *named = sys.argv[1:]
    inputs, labels = (intents if kind == "intents" else python)(Path(folder))
    wanted = log_softmax(logits_of(exact, inputs))
    found = {"float": figures(wanted, wanted, labels)}
    for each in named:
        name, _, graph = each.partition("=")
        found[name] = figures(wanted, log_softmax(logits_of(graph, inputs)), labels)
    print(json.dumps(found))


def intents(folder: Path) -> tuple[list[dict[str, Any]], Any]:
    from transformers import AutoTokenizer

    texts, labels = labelled_sentences()
    encoded = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="np")
    count = range(0, len(texts), BATCH)
    return [{k: v[at : at + BATCH] for k, v in encoded.items()} for at in count], labels


def python(folder: Path) -> tuple[list[dict[str, Any]], None]:
    rows = np.array(python_modules(folder))
    return [{"input_ids": rows[at : at + BATCH]} for at in range(0, len(rows), BATCH)], None


def logits_of(graph: str, inputs: list[dict[str, Any]]) -> Any:
    """Return the logits of all rows, without what is padding."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rows = [
        session.run(["logits"], feeds_of(session, each["input_ids"], each))[0] for each in inputs
    ]
    return np.concatenate([row.reshape(-1, row.shape[-1]) for row in rows]).astype(np.float64)


def feeds_of(session: Any, ids: Any, given: dict[str, Any]) -> dict[str, Any]:
    batch, length = ids.shape
    known = {
        "input_ids": ids,
        "attention_mask": given.get("attention_mask", np.ones_like(ids)),
        "position_ids": np.broadcast_to(np.arange(length), ids.shape),
        "token_type_ids": np.zeros_like(ids),
    }
    return {
        each.name: known[each.name].astype(np.int64)
        if each.name in known
        else np.zeros((batch, each.shape[1], 0, each.shape[3]), np.float32)
        for each in session.get_inputs()
    }


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def figures(wanted: Any, found: Any, labels: Any) -> dict[str, float]:
    """Return the mean KL in nats, the share of changed best answers, and the accuracy."""
    best = found.argmax(-1)
    row = {
        "kl": float((np.exp(wanted) * (wanted - found)).sum(-1).mean()),
        "changed_share": float((best != wanted.argmax(-1)).mean()),
    }
    return row if labels is None else {**row, "accuracy": float((best == labels).mean())}


if __name__ == "__main__":
    main()
