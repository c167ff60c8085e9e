"""A session's memory budget: threads with room for one adapter, and the bytes counted."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lora_export.core.errors import UsageError
from lora_export.core.manifest import read_manifest
from lora_export.runtime import open_export
from tests.runtime.session.example import CLOSE, FEEDS


def test_threads_with_several_adapters_and_room_for_one(swappable, adapters, by_peft):
    """Every thread gets its own adapter's result, and the budget is kept all the while."""
    more = {"d": adapters["b"], "e": adapters["c"]}
    truth = {**by_peft, "d": by_peft["b"], "e": by_peft["c"]}
    with open_export(swappable, adapters=more, threads=1) as session:
        for name in truth:
            session.load(name)
        limit = session.cached_bytes
    with open_export(swappable, adapters=more, threads=1) as session:
        largest = 0
        for name in truth:
            before = session.cached_bytes
            session.load(name)
            largest = max(largest, session.cached_bytes - before)
    assert largest < limit
    failures: list[str] = []
    session = open_export(swappable, adapters=more, threads=1, cache_bytes=largest)
    start = threading.Barrier(5)

    def hammer(seed: int) -> None:
        start.wait()
        random = np.random.default_rng(seed)
        for _ in range(12):
            name = str(random.choice(list(truth)))
            found = session.run(FEEDS, adapter=name)["logits"]
            if not np.allclose(found, truth[name], **CLOSE):
                failures.append(name)
            if session.cached_bytes > largest:
                failures.append(f"{session.cached_bytes} bytes")

    with session, ThreadPoolExecutor(5) as pool:
        for each in [pool.submit(hammer, seed) for seed in range(5)]:
            each.result()
    assert failures == []


def test_what_is_loaded_is_counted(swappable):
    manifest = read_manifest(swappable)
    weights = sum(
        4 * int(np.prod(use.shape))
        for uses in manifest.parameters.values()
        for use in uses
        if use.module != "Embedding"
    )
    pack = json.loads((swappable / "lora_export.json").read_text())["files"]
    assert "adapters/b.safetensors" in pack
    from safetensors.numpy import load_file

    tensors = load_file(swappable / "adapters" / "b.safetensors").values()
    with open_export(swappable) as session:
        assert session.cached_bytes == 0
        session.load("b")
        assert session.cached_bytes == sum(each.nbytes for each in tensors)
        session.load("b")
        session.run(FEEDS)
        assert session.cached_bytes == sum(each.nbytes for each in tensors)
        session.load("a", how="merge_at_load")
        assert session.cached_bytes == sum(each.nbytes for each in tensors) + weights
    assert session.cached_bytes == 0


def test_an_adapter_larger_than_the_budget_is_refused_with_what_it_takes(export):
    with open_export(export, cache_bytes=1000) as session:
        with pytest.raises(UsageError, match=r"a \(merged\) takes \d+ bytes") as caught:
            session.run(FEEDS, adapter="a")
        assert "cache_bytes" in (caught.value.hint or "")
