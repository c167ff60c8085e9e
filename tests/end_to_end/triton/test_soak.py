"""Ten thousand requests over a hundred adapters, of which ten fit: memory flat, answers right."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lora_export.core.manifest import read_manifest
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import nbytes
from lora_export.runtime import open_export
from lora_export.triton.repository import write_repository
from lora_export.triton.repository_options import RepositoryOptions
from tests.end_to_end.triton.clients import Client
from tests.end_to_end.triton.server import serving
from tests.helpers.builds import build
from tests.helpers.triton import CLOSE, variant

ADAPTERS = 100
HELD = 10
REQUESTS = 10_000
CLIENTS = 4
WARM = 2_000  # by then every buffer has its size
GROWTH_BYTES = 8_000_000


@pytest.mark.slow
def test_a_hundred_adapters_in_room_for_ten(home, tiny, tmp_path):
    base = tiny.base("bert", "text-classification")
    first = tiny.adapter(base, seed=21)
    adapters = {f"t{at}": variant(first, tmp_path / f"t{at}", at) for at in range(ADAPTERS)}
    export = build(base, adapters, tmp_path / "out", mode="swappable").output
    ids = np.random.default_rng(0).integers(3, 200, (1, 8))
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    with open_export(export) as session:
        golden = {name: session.run(feeds, adapter=name)["logits"] for name in adapters}
    apart = np.array([each.ravel() for each in golden.values()])
    assert len(np.unique(apart.round(5), axis=0)) == ADAPTERS  # each can be told from the others
    pack = read_manifest(export).adapters["t0"].pack
    size = sum(map(nbytes, read_header(export / pack.safetensors)[0].values()))
    repository = tmp_path / "models"
    write_repository(
        export, repository, name="m", settings=RepositoryOptions(cache_bytes=HELD * size, threads=1)
    )
    wrong: list[str] = []
    memory: list[int] = []
    done = 0
    lock = threading.Lock()
    with serving(home, repository, tmp_path / "log") as server:

        def run(seed: int) -> None:
            nonlocal done
            client = Client(server)
            random = np.random.default_rng(seed)
            for _ in range(REQUESTS // CLIENTS):
                name = f"t{random.integers(ADAPTERS)}"
                if not np.allclose(client.ask("m", feeds, name), golden[name], **CLOSE):
                    wrong.append(name)
                with lock:
                    done += 1
                    if done >= WARM and done % 1000 == 0:
                        memory.append(server.rss_bytes())

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(run, range(CLIENTS)))
        metrics = server.metrics()
    labels = '{model="m",version="1"}'
    assert wrong == []
    assert done == REQUESTS
    assert metrics[f"lora_export_adapter_cached_bytes{labels}"] == HELD * size
    assert metrics[f"lora_export_adapter_loads_total{labels}"] > REQUESTS / 2  # most had to go
    asked = [v for k, v in metrics.items() if k.startswith("lora_export_adapter_requests_total")]
    assert sum(asked) == REQUESTS
    print("resident MB:", [round(each / 1e6, 1) for each in memory])  # noqa: T201  (with -s)
    assert max(memory) - memory[0] < GROWTH_BYTES, memory
