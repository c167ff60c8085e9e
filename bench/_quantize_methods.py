"""The methods of quantization on both trained recipes, and their speed; for ``quantize_kernel.py``.

Usage: python _quantize_methods.py quality
       python _quantize_methods.py speed REPETITIONS

Printed as JSON. quality: for each recipe, width, block size and method, the relative error of the
weights and how far the outputs move. speed: for each method, millions of weights a second.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from _peer_quantizers import PEERS, peer_values
from _peer_texts import python_modules

from lora_export.weights.quantization import blocks
from lora_export.weights.quantization.methods import METHODS

ROOT: Final = Path(__file__).resolve().parent.parent
SCHEMES: Final = ((4, 16), (4, 32), (4, 64), (8, 32))
PEER_SCHEME: Final = (4, 32)
OF_WEIGHTS: Final = tuple(name for name, each in METHODS.items() if not each.needs_inputs)
LAYERS: Final = ("Conv1D", "Linear")


def main() -> None:
    words = sys.argv[1:]
    print(json.dumps(quality() if words[0] == "quality" else speed(int(words[1]))))


def speed(repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Return millions of weights a second: 8 million random ones, in blocks of 32."""
    values = np.random.default_rng(0).standard_normal((8192, 1024), np.float32)
    compiled = blocks.kernels
    ways = {"compiled": compiled, "NumPy": None}
    found: dict[str, dict[str, list[float]]] = {}
    for way, bits, method in itertools.product(ways, (4, 8), OF_WEIGHTS):
        if way == "NumPy" or compiled is not None:
            blocks.kernels = ways[way]
            found[f"{way}, int{bits}, {method}"] = {
                "1 thread": [rate([values], bits, method) for _ in range(repetitions)],
                "2 threads": [rate(np.split(values, 2), bits, method) for _ in range(repetitions)],
            }
    return found


def rate(parts: list[Any], bits: int, method: str) -> float:
    with ThreadPoolExecutor(len(parts)) as pool:
        start = time.perf_counter()
        list(pool.map(lambda part: quantize(part, bits, 32, method), parts))
        return sum(part.size for part in parts) / 1e6 / (time.perf_counter() - start)


def quantize(values: Any, bits: int, block_size: int, method: str) -> Any:
    return blocks.quantize_blocks(
        values, bits=bits, block_size=block_size, method=method, scale_dtype=np.float16
    )


def quality() -> dict[str, dict[str, dict[str, float]]]:
    """Return the errors of both recipes' bases, by width, block size and method."""
    import torch

    found: dict[str, dict[str, dict[str, float]]] = {}
    for recipe, load, distance in (
        ("gpt2-python", decoder, divergence),
        ("minilm-intents", encoder, moved),
    ):
        model, run = load()
        layers = [
            (module, module.weight.data.clone())
            for name, module in model.named_modules()
            if type(module).__name__ in LAYERS and ("layer." in name or "h." in name)
        ]
        with torch.no_grad():
            exact = run()
            for bits, block_size in SCHEMES:
                peers = PEERS if (bits, block_size) == PEER_SCHEME else ()
                for method in (*OF_WEIGHTS, *peers):
                    error = round_weights(layers, bits, block_size, method)
                    found.setdefault(recipe, {})[f"int{bits}, block {block_size}, {method}"] = {
                        "weights": round(error, 6),
                        distance.__name__: round(distance(exact, run()), 8),
                    }
    return found


def round_weights(layers: Any, bits: int, block_size: int, method: str) -> float:
    """Put the dequantized values in place of the weights; return their relative error."""
    import torch

    errors = squares = 0.0
    for module, weight in layers:
        stored = weight if type(module).__name__ == "Conv1D" else weight.T  # [inputs, outputs]
        values = np.ascontiguousarray(stored.numpy())
        kept = (
            peer_values(values, method, block_size)
            if method in PEERS
            else blocks.dequantize(*quantize(values, bits, block_size, method), block_size)
        )
        errors += float(np.square(kept - values, dtype=np.float64).sum())
        squares += float(np.square(values, dtype=np.float64).sum())
        back = torch.from_numpy(kept)
        module.weight.data = (back if stored is weight else back.T).contiguous()
    return float(np.sqrt(errors / squares))


def decoder() -> tuple[Any, Any]:
    """Return gpt2-python's base, and a run over modules that it was not trained on."""
    import torch
    from transformers import GPT2LMHeadModel

    folder = ROOT / "recipes" / "gpt2-python" / "base"
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    batch = torch.tensor(python_modules(folder))
    return model, lambda: torch.log_softmax(model(batch).logits.double(), -1)


def divergence(exact: Any, found: Any) -> float:
    """KL of the next token's distribution, nats, the mean over all positions."""
    return float((exact.exp() * (exact - found)).sum(-1).mean())


def encoder() -> tuple[Any, Any]:
    """Return MiniLM, and a run that gives unit embeddings of held-out sentences."""
    import torch
    from transformers import AutoTokenizer, BertModel

    folder = ROOT / "models" / "all-MiniLM-L6-v2"
    model, tokenizer = (
        BertModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    lines = (ROOT / "recipes" / "minilm-intents" / "heldout.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:300]]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]

    def run() -> Any:
        pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1)

    return model, run


def moved(exact: Any, found: Any) -> float:
    """Squared distance of unit embeddings, the mean over all sentences."""
    return float((exact - found).square().sum(-1).mean())


if __name__ == "__main__":
    main()
