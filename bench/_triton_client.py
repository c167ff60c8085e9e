"""The load of `triton_load.py`, in a process of its own; prints JSON.

Usage: _triton_client.py ADDRESS MODEL CLIENTS SECONDS MOST LENGTH ADAPTER...

Each of CLIENTS connections sends one request after another, 1 x LENGTH tokens, its adapter drawn at
random, for SECONDS or until MOST requests are answered; every ADAPTER is asked for once before.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton


def request(length: int, adapter: str, seed: int) -> list[Any]:
    """Return the inputs of a request."""
    ids = np.random.default_rng(seed).integers(5, 5000, (1, length))
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    inputs = []
    for name, values in arrays.items():
        one = triton.InferInput(name, list(values.shape), "INT64")
        one.set_data_from_numpy(values)
        inputs.append(one)
    named = triton.InferInput("adapter", [1, 1], "BYTES")
    named.set_data_from_numpy(np.array([[adapter]], object))
    return [*inputs, named]


async def load(
    address: str, model: str, requests: list[list[Any]], *, clients: int, seconds: float, most: int
) -> dict[str, Any]:
    async with triton.InferenceServerClient(address) as client:
        for each in requests:
            await client.infer(model, each)
        times: list[float] = []
        start = time.perf_counter()

        async def work(seed: int) -> None:
            random = np.random.default_rng(seed)
            while time.perf_counter() - start < seconds and len(times) < most:
                inputs = requests[random.integers(len(requests))]
                begin = time.perf_counter()
                await client.infer(model, inputs)
                times.append(time.perf_counter() - begin)

        await asyncio.gather(*(work(seed) for seed in range(clients)))
        wall_s = time.perf_counter() - start
    p50, p99 = np.percentile(np.array(times) * 1e3, [50, 99])
    return {
        "requests": len(times),
        "per_second": round(len(times) / wall_s, 2),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
    }


def main() -> None:
    address, model, clients, seconds, most, length, *adapters = sys.argv[1:]
    requests = [
        request(int(length), "" if name == "base" else name, seed)
        for seed, name in enumerate(adapters)
    ]
    done = load(
        address, model, requests, clients=int(clients), seconds=float(seconds), most=int(most)
    )
    print(json.dumps(asyncio.run(done)))


if __name__ == "__main__":
    main()
