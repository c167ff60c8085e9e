"""Labels, inputs and lines of small data sets."""

from __future__ import annotations

import json

from lora_export.graph.spec.signature import Input, Output, Signature

LABELS = ("stop", "go", "wait")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def signature(*names):
    inputs = tuple(Input(name, "int64", ("batch", "sequence")) for name in names)
    return Signature(inputs, (Output("logits", ("batch",)),))


def line(text: object, label: object, **more: object) -> str:
    return json.dumps({"text": text, "label": label, **more}, ensure_ascii=False) + "\n"
