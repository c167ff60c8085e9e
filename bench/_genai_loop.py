"""Milliseconds a token of models in onnxruntime-genai's own loop, in turn; prints JSON.

Run in an environment with onnxruntime-genai, for `quantized_peers.py`.

Usage: _genai_loop.py CONTEXT TOKENS PAIRS NAME=DIRECTORY NAME=DIRECTORY ...
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime_genai as og


def main() -> None:
    context, tokens, pairs = map(int, sys.argv[1:4])
    models = {
        name: og.Model(folder) for name, _, folder in (each.partition("=") for each in sys.argv[4:])
    }
    times: dict[str, dict[str, list[float]]] = {
        name: {"prefill_ms": [], "token_ms": []} for name in models
    }
    chance = np.random.default_rng(0)
    prompt = chance.integers(5, 5000, context).astype(np.int32)
    for index in range(-1, pairs):
        for name in chance.permutation(list(models)):
            prefill, token = generate(models[name], prompt, tokens)
            if index >= 0:
                times[name]["prefill_ms"].append(prefill)
                times[name]["token_ms"].append(token)
    print(json.dumps(times))


def generate(model: Any, prompt: Any, tokens: int) -> tuple[float, float]:
    """Return the milliseconds of the prompt, and of each token after it."""
    params = og.GeneratorParams(model)
    length = len(prompt) + tokens
    params.set_search_options(max_length=length + 1, min_length=length + 1, do_sample=False)
    generator = og.Generator(model, params)
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
