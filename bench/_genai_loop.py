"""Milliseconds a token of models in onnxruntime-genai's own loop, in turn; prints JSON.

Run in an environment with onnxruntime-genai, for `quantized_peers.py` and `decoder.py`. A directory
with packs (``adapters/*.onnx_adapter``) is run with the first of them.

Usage: _genai_loop.py CONTEXT TOKENS PAIRS NAME=DIRECTORY NAME=DIRECTORY ...
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og


def main() -> None:
    context, tokens, pairs = map(int, sys.argv[1:4])
    folders = {name: folder for name, _, folder in (e.partition("=") for e in sys.argv[4:])}
    models = {name: og.Model(folder) for name, folder in folders.items()}
    packs = {name: packs_of(models[name], folder) for name, folder in folders.items()}
    times: dict[str, dict[str, list[float]]] = {
        name: {"prefill_ms": [], "token_ms": []} for name in models
    }
    chance = np.random.default_rng(0)
    prompt = chance.integers(5, 5000, context).astype(np.int32)
    for index in range(-1, pairs):
        for name in chance.permutation(list(models)):
            prefill, token = generate(models[name], prompt, tokens, packs[name])
            if index >= 0:
                times[name]["prefill_ms"].append(prefill)
                times[name]["token_ms"].append(token)
    print(json.dumps(times))


def packs_of(model: Any, folder: str) -> Any:
    """Return the adapters of a directory, the first one loaded as ``one``; None without any."""
    paths = sorted(Path(folder).glob("adapters/*.onnx_adapter"))
    if not paths:
        return None
    packs = og.Adapters(model)
    packs.load(str(paths[0]), "one")
    return packs


def generate(model: Any, prompt: Any, tokens: int, packs: Any = None) -> tuple[float, float]:
    """Return the milliseconds of the prompt, and of each token after it."""
    params = og.GeneratorParams(model)
    length = len(prompt) + tokens
    params.set_search_options(max_length=length + 1, min_length=length + 1, do_sample=False)
    generator = og.Generator(model, params)
    if packs is not None:
        generator.set_active_adapter(packs, "one")
    start = time.perf_counter()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    ready = time.perf_counter()
    for _ in range(tokens - 1):
        generator.generate_next_token()
    end = time.perf_counter()
    return (ready - start) * 1e3, (end - ready) * 1e3 / (tokens - 1)


if __name__ == "__main__":
    main()
