"""Jobs for onnxruntime-genai: JSON on stdin, JSON on stdout.

A job is a directory with steps. A step runs one batch of prompts (token ids, texts, or a chat)
greedily, with the base or an adapter, or with adapters swapped while it writes. Its result has the
new tokens of each row without the stop token, and the text of a stream: of the tokens `spoken`,
then of the new ones. A directory that cannot be opened has ``error``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as og


def opened(job):
    config = og.Config(job["folder"])
    if "overlay" in job:
        config.overlay(json.dumps(job["overlay"]))
    return og.Model(config)


def packs_of(model, folder):
    packs = og.Adapters(model)
    for path in sorted(Path(folder).glob("adapters/*.onnx_adapter")):
        packs.load(str(path), path.stem)
    return packs


def ids_of(step, tokenizer):
    """Return a batch of ids; shorter rows are filled on the right, as encode_batch does."""
    if "texts" in step:
        return np.asarray(tokenizer.encode_batch(step["texts"]).as_numpy(), np.int32)
    if "chat" in step:
        text = tokenizer.apply_chat_template(json.dumps(step["chat"]), add_generation_prompt=True)
        return np.asarray(tokenizer.encode(text), np.int32)[None]
    longest = max(map(len, step["ids"]))
    return np.array([[*row, *[0] * (longest - len(row))] for row in step["ids"]], np.int32)


def generator_of(model, packs, step, ids):
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(
        max_length=ids.shape[1] + step["count"], batch_size=len(ids), do_sample=False
    )
    generator = og.Generator(model, parameters)
    if step.get("adapter"):
        generator.set_active_adapter(packs, step["adapter"])
    generator.append_tokens(ids)
    return generator


def run_step(model, packs, tokenizer, step):
    ids = ids_of(step, tokenizer)
    generator = generator_of(model, packs, step, ids)
    stream = tokenizer.create_stream()
    pieces = [stream.decode(token) for token in step.get("spoken", ())]
    swaps = {at: name for name, at in step.get("swaps", ())}
    while not generator.is_done():
        if (at := generator.token_count() - ids.shape[1]) in swaps:
            generator.set_active_adapter(packs, swaps[at])
        generator.generate_next_token()
        if "chat" in step and not generator.is_done():
            pieces.append(stream.decode(generator.get_next_tokens()[0]))
    rows = [generator.get_sequence(at)[ids.shape[1] :].tolist() for at in range(len(ids))]
    stop = step.get("stop", 2)
    cut = [row[: row.index(stop)] if stop in row else row for row in rows]
    return {"ids": ids.tolist(), "tokens": cut, "text": "".join(pieces)}


def run(job):
    try:
        model = opened(job)
    except RuntimeError as error:
        return {"error": str(error)}
    packs, tokenizer = packs_of(model, job["folder"]), og.Tokenizer(model)
    return {"steps": [run_step(model, packs, tokenizer, step) for step in job["steps"]]}


json.dump([run(job) for job in json.load(sys.stdin)], sys.stdout)
