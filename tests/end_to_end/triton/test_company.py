"""Answers do not depend on the requests that share the batch, the server or the moment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from lora_export.runtime import open_export
from lora_export.triton.check_repository import check_repository
from lora_export.triton.live_changes import add_to_repository, remove_from_repository
from lora_export.triton.repository import write_repository
from lora_export.triton.repository_options import RepositoryOptions
from tests.end_to_end.triton.clients import Client
from tests.end_to_end.triton.server import serving
from tests.helpers.builds import build
from tests.helpers.triton import CLOSE, grown_exports, replaced_exports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.end_to_end.triton.server import Server

TASK = "text-classification"
LABELS = {"three": 3, "two": 2, "five": 5}
WAYS = {"merged": "merged", "swappable": "swappable", "batched": "batched"}
LOWEST = np.finfo(np.float32).min


def feeds_of(rows: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(3).integers(3, 200, (rows, 7))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


# ------------------------------------------------------------------------- heads of other widths


@pytest.fixture(scope="module")
def heads(tiny, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("heads")
    base = tiny.base("roberta", TASK)
    adapters = {
        name: tiny.adapter(base, seed=seed, labels_count=count)
        for seed, (name, count) in enumerate(LABELS.items(), 61)
    }
    return {mode: build(base, adapters, root / mode, mode=mode).output for mode in WAYS}


@pytest.fixture(scope="module")
def server(home, heads, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("company")
    settings = RepositoryOptions(max_queue_delay_us=200_000, preferred_batch_sizes=(8,))
    for mode, export in heads.items():
        write_repository(export, folder / "models", name=mode, backend="python", settings=settings)
    assert not any(check_repository(folder / "models").values())
    with serving(home, folder / "models", folder / "log") as running:
        yield running


@pytest.mark.parametrize("model", WAYS)
def test_a_request_has_the_logits_of_its_adapter_whoever_shares_its_batch(server, heads, model):
    feeds = feeds_of(1)
    names = [None, "three", "two", "five"]
    with open_export(heads["merged"]) as session:
        wanted = {name: session.run(feeds, adapter=name)["logits"] for name in names}
    assert {name: each.shape for name, each in wanted.items()} == {
        None: (1, 3), "three": (1, 3), "two": (1, 2), "five": (1, 5),
    }  # fmt: skip
    with ThreadPoolExecutor(8) as pool:  # at once: they share a batch
        given = names * 2
        found = list(pool.map(lambda name: Client(server).ask(model, feeds, name or ""), given))
    for name, each in zip(given, found, strict=True):
        np.testing.assert_allclose(each, wanted[name], **CLOSE)


@pytest.mark.parametrize("model", WAYS)
def test_rows_of_one_request_are_as_wide_as_the_widest_of_them(server, heads, model):
    feeds = feeds_of(3)
    with open_export(heads["merged"]) as session:
        one = {name: each[:1] for name, each in feeds.items()}
        base = session.run(one)["logits"][0]
        two = session.run({n: e[1:2] for n, e in feeds.items()}, adapter="two")["logits"][0]
    found = Client(server).ask(model, feeds, ["", "two", ""])
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found[0], base, **CLOSE)
    np.testing.assert_allclose(found[1, :2], two, **CLOSE)
    assert found[1, 2] == LOWEST


# --------------------------------------------------------------------------- what comes and goes


@pytest.fixture(scope="module")
def grown(exports, tiny, tmp_path_factory) -> dict[str, Path]:
    """The exports with a further adapter, ``new``."""
    return grown_exports(tiny, exports, tmp_path_factory.mktemp("grown"))


@pytest.fixture(scope="module")
def replaced(exports, tiny, tmp_path_factory) -> dict[str, Path]:
    """The exports with another adapter called ``a``."""
    return replaced_exports(tiny, exports, tmp_path_factory.mktemp("replaced"))


def bert_feeds() -> dict[str, np.ndarray]:
    feeds = feeds_of(1)
    return {**feeds, "token_type_ids": np.zeros_like(feeds["input_ids"])}


@pytest.mark.parametrize("mode", WAYS)
def test_an_adapter_replaced_under_load_is_the_old_one_or_the_new(
    home, exports, replaced, tmp_path, mode
):
    feeds, answers = bert_feeds(), []
    for export in (exports[mode], replaced[mode]):
        with open_export(export) as session:
            answers.append(session.run(feeds, adapter="a")["logits"])
    assert not np.allclose(*answers, **CLOSE)
    repository = tmp_path / "models"
    write_repository(exports[mode], repository, name="m", backend="python")
    stop, wrong, seen = threading.Event(), [], [0, 0]

    def run() -> None:
        client = Client(server)
        while not stop.is_set():
            try:
                found = client.ask("m", feeds, "a")
            except InferenceServerException as error:
                wrong.append(str(error))
                continue
            right = [np.allclose(found, each, **CLOSE) for each in answers]
            if True not in right:
                wrong.append(f"neither: {found}")
            seen[right.index(True) if True in right else 0] += 1

    with serving(home, repository, tmp_path / "log") as server:
        threads = [threading.Thread(target=run) for _ in range(2)]
        for each in threads:
            each.start()
        try:
            for export in [replaced[mode], exports[mode]] * 4:
                add_to_repository(export, repository, ["a"], name="m", replace=True)
                time.sleep(0.3)
        finally:
            stop.set()
            for each in threads:
                each.join()
    assert wrong == []
    assert min(seen) > 3


WRITER = """
import sys
from pathlib import Path
from lora_export.triton.live_changes import add_to_repository, remove_from_repository
export, repository = map(Path, sys.argv[1:])
print("ready", flush=True)
while True:
    add_to_repository(export, repository, ["new"], name="m", replace=True)
    remove_from_repository(repository, "new", name="m")
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", WAYS)
def test_writers_killed_at_any_moment_leave_a_repository_that_polls(
    home, exports, grown, tmp_path, mode
):
    feeds = bert_feeds()
    with open_export(grown[mode]) as session:
        wanted = {name: session.run(feeds, adapter=name)["logits"] for name in ("a", "new")}
    repository = tmp_path / "models"
    write_repository(exports[mode], repository, name="m", backend="python")
    random = np.random.default_rng(0)
    options = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with serving(home, repository, tmp_path / "log", *options) as server:
        client = Client(server)
        for _ in range(12):
            writer = subprocess.Popen(
                [sys.executable, "-c", WRITER, grown[mode], repository], stdout=subprocess.PIPE
            )
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            end = time.monotonic() + random.uniform(0.01, 0.5)
            while time.monotonic() < end:
                np.testing.assert_allclose(client.ask("m", feeds, "a"), wanted["a"], **CLOSE)
                try:
                    found = client.ask("m", feeds, "new")
                except InferenceServerException as error:
                    assert "there is no adapter new" in str(error)  # noqa: PT017
                else:
                    np.testing.assert_allclose(found, wanted["new"], **CLOSE)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
            assert check_repository(repository) == {"m": []}
            np.testing.assert_allclose(client.ask("m", feeds, "a"), wanted["a"], **CLOSE)
        add_to_repository(grown[mode], repository, ["new"], name="m", replace=True)
        np.testing.assert_allclose(client.ask("m", feeds, "new"), wanted["new"], **CLOSE)
        time.sleep(2.5)  # polled once more
        np.testing.assert_allclose(client.ask("m", feeds, "new"), wanted["new"], **CLOSE)
    named = {each.name for each in repository.parent.iterdir()}
    assert named == {"models", "log"}  # no staging folder is left


def test_two_servers_share_a_repository(home, exports, grown, tmp_path):
    feeds = bert_feeds()
    with open_export(grown["swappable"]) as session:
        wanted = session.run(feeds, adapter="new")["logits"]
    repository = tmp_path / "models"
    write_repository(exports["swappable"], repository, name="m")
    with (
        serving(home, repository, tmp_path / "log1") as first,
        serving(home, repository, tmp_path / "log2") as second,
    ):
        for _ in range(2):
            add_to_repository(grown["swappable"], repository, ["new"], name="m")
            for each in (first, second):
                np.testing.assert_allclose(Client(each).ask("m", feeds, "new"), wanted, **CLOSE)
            remove_from_repository(repository, "new", name="m")
            for each in (first, second):
                with pytest.raises(InferenceServerException, match="there is no adapter new"):
                    Client(each).ask("m", feeds, "new")


# ------------------------------------------------------------------------- instances, and their end


def recorded(home: Path, folder: Path) -> tuple[str, Path]:
    """Return the option for backends whose stubs write their exit codes, and the file of these."""
    own, exits = folder / "backends", folder / "exits"
    original = home / "pytriton/tritonserver/backends/python"
    (own / "python").mkdir(parents=True)
    for each in original.iterdir():
        (own / "python" / each.name).symlink_to(each)
    stub = own / "python/triton_python_backend_stub"
    stub.unlink()
    stub.write_text(f'#!/bin/sh\n{original / stub.name} "$@"\necho $? >> {exits}\n')
    stub.chmod(0o755)
    return f"--backend-directory={own}", exits


def test_instances_share_their_metrics_and_end_in_peace(home, exports, tmp_path):
    repository = tmp_path / "models"
    settings = RepositoryOptions(instances=2)
    write_repository(exports["swappable"], repository, name="m", settings=settings)
    feeds = bert_feeds()
    table = json.loads((repository / "m/1/export/serving.json").read_text())
    sizes = [table["adapters"][name]["nbytes"] for name in ("a", "b")]
    backends, exits = recorded(home, tmp_path)
    options = ("--model-control-mode=explicit", "--load-model=m", backends)
    with serving(home, repository, tmp_path / "log", *options) as server:

        def value(name: str) -> float:
            return server.metrics()[name]

        labels = '{model="m",version="1"}'
        cached = f"lora_export_adapter_cached_bytes{labels}"
        counted = 'lora_export_adapter_requests_total{adapter="a",model="m",version="1"}'
        asked = 0

        def ask_all() -> None:
            nonlocal asked
            with ThreadPoolExecutor(8) as pool:
                names = ["a", "b"] * 8
                list(pool.map(lambda name: Client(server).ask("m", feeds, name), names))
            asked += len(names) // 2

        end = time.monotonic() + 120
        while value(f"lora_export_adapter_loads_total{labels}") != 4:  # two in each instance
            ask_all()
            assert time.monotonic() < end
        assert value(counted) == asked
        assert value(cached) == 2 * sum(sizes)
        for _ in range(2):  # loaded again, as it has changed, while the old one still answers
            (repository / "m/config.pbtxt").touch()
            assert server.status("v2/repository/models/m/load", b"{}") == 200
            ask_all()
        while value(cached) > 2 * sum(sizes):  # the old ones have not gone
            time.sleep(0.1)
            assert time.monotonic() < end, value(cached)
        ask_all()
        assert value(counted) == asked
    assert not set(exits.read_text().split()) - {"0", "1"}  # 1: none of ours; 139: a crash


def test_a_refused_request_leaves_nothing_to_crash_over(home, exports, tmp_path):
    repository = tmp_path / "models"
    write_repository(exports["batched"], repository, name="m")
    feeds = bert_feeds()
    backends, exits = recorded(home, tmp_path)
    with serving(home, repository, tmp_path / "log", backends) as server:
        client = Client(server)
        longer = np.pad(feeds["attention_mask"], ((0, 0), (0, 2)), constant_values=1)
        for wrong in ({"attention_mask": longer}, {"input_ids": feeds["input_ids"] + 10_000}):
            for _ in range(2):
                with pytest.raises(InferenceServerException, match=r"sequence|refuses"):
                    client.ask("m", {**feeds, **wrong}, "a")
    assert not set(exits.read_text().split()) - {"0", "1"}
