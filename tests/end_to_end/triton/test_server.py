"""Generated repositories in the real server: answers are the export's golden outputs."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from lora_export.runtime import open_export
from lora_export.triton.check_server import server_problems
from lora_export.triton.live_changes import add_to_repository, remove_from_repository
from lora_export.triton.repository import write_repository
from lora_export.triton.repository_options import RepositoryOptions
from tests.end_to_end.triton.clients import Client, ask_text, protocols
from tests.end_to_end.triton.server import Server, serving
from tests.helpers.triton import CLOSE, goldens, grown_exports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.ondevice.judge.golden_files import Golden

WAYS = {  # model: the export's mode, how adapters are run
    "merged": ("merged", "merged"),
    "swappable": ("swappable", "swappable"),
    "batched": ("batched", "batched"),
    "at-load": ("swappable", "merge_at_load"),
}
NAMES = ("base", "a", "b", "c")
REFUSED = {"StatusCode.INVALID_ARGUMENT", "StatusCode.INTERNAL"}  # the second is Triton's own


@pytest.fixture(scope="module")
def repository(exports, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "models"
    for name, (mode, way) in WAYS.items():
        write_repository(
            exports[mode], folder, name=name, backend="python", way=way, text=name == "swappable"
        )
    settings = RepositoryOptions(
        response_cache=True, instances=2, max_queue_size=64, queue_timeout_us=30_000_000,
        preferred_batch_sizes=(4, 8), resources={"R": 1}, priority=2, versions=(1,),
    )  # fmt: skip
    write_repository(exports["swappable"], folder, name="cached", settings=settings)
    return folder


@pytest.fixture(scope="module")
def server(home, repository, tmp_path_factory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    options = ("--cache-config=local,size=1048576", "--rate-limit=execution_count")
    with serving(home, repository, log, *options) as running:
        yield running


@pytest.fixture(scope="module")
def expected(exports) -> dict[str, Golden]:
    return goldens(exports["swappable"])


# ----------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("protocol", protocols())
@pytest.mark.parametrize("model", [*WAYS, "cached", "cached-cached"])
def test_every_adapter_answers_with_its_golden_outputs(server, exports, model, protocol):
    client = Client(server, protocol)
    golden = goldens(exports[WAYS.get(model, ("swappable",))[0]])
    assert sorted(golden) == sorted(NAMES)
    seen = []
    for name, each in golden.items():
        for case, wanted in zip(each.cases, each.expected, strict=True):
            found = client.ask(model, case.feeds, "" if name == "base" else name)
            np.testing.assert_allclose(found, wanted, **CLOSE)
            seen.append(found)
    assert not np.allclose(seen[0], seen[2], **CLOSE)  # they do differ


def test_without_an_adapter_the_base_answers(server, expected):
    golden = expected["base"]
    found = Client(server).ask("swappable", golden.cases[1].feeds)
    np.testing.assert_allclose(found, golden.expected[1], **CLOSE)


@pytest.mark.parametrize("model", WAYS)
def test_rows_of_one_request_may_have_an_adapter_each(server, exports, model):
    with open_export(exports["swappable"]) as session:
        feeds = goldens(exports["swappable"])["a"].cases[1].feeds
        feeds = {name: np.repeat(each[:1], 4, axis=0) for name, each in feeds.items()}
        one = {name: each[:1] for name, each in feeds.items()}
        names = ("b", "", "c", "b")
        rows = [session.run(one, adapter=each or None)["logits"] for each in names]
    found = Client(server).ask(model, feeds, names)
    np.testing.assert_allclose(found, np.concatenate(rows), **CLOSE)


@pytest.mark.parametrize("model", WAYS)
def test_clients_at_once_with_adapters_mixed_get_their_own_answers(server, expected, model):
    plan = [(name, at) for name in NAMES for at in range(2)] * 6
    np.random.default_rng(1).shuffle(plan)

    def run(part: list[tuple[str, str]]) -> None:
        client = Client(server)
        for name, at in part:
            golden = expected[name]
            found = client.ask(
                model, golden.cases[int(at)].feeds, "" if name == "base" else str(name)
            )
            np.testing.assert_allclose(found, golden.expected[int(at)], **CLOSE)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, [plan[start::6] for start in range(6)]))


def test_texts_are_tokenized_in_the_server(server, exports):
    import tokenizers

    texts = ["w3 w4 w5", "w9"]
    found = ask_text(Client(server), "swappable-text", texts, "b")
    tokenizer = tokenizers.Tokenizer.from_file(str(exports["swappable"] / "hf/tokenizer.json"))
    encoded = tokenizer.encode_batch(texts)
    feeds = {
        "input_ids": np.array([each.ids for each in encoded]),
        "attention_mask": np.array([each.attention_mask for each in encoded]),
        "token_type_ids": np.array([each.type_ids for each in encoded]),
    }
    with open_export(exports["swappable"]) as session:
        wanted = session.run(feeds, adapter="b")["logits"]
    np.testing.assert_allclose(found, wanted, **CLOSE)


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("model", WAYS)
def test_an_unknown_adapter_is_an_error_of_its_request_alone(server, expected, model):
    golden = expected["a"]

    def ask(name: str) -> object:
        try:
            return Client(server).ask(model, golden.cases[0].feeds, name)
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, ["a", "nobody"] * 8))
    for right, wrong in zip(answers[::2], answers[1::2], strict=True):
        np.testing.assert_allclose(right, golden.expected[0], **CLOSE)
        assert isinstance(wrong, InferenceServerException)
        assert wrong.message() == "there is no adapter nobody; there are: a, b, c"
        assert wrong.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("model", WAYS)
def test_a_malformed_request_harms_no_other(server, expected, model):
    golden = expected["a"]
    feeds = dict(golden.cases[0].feeds)
    bad = {
        "another token": {**feeds, "input_ids": feeds["input_ids"] + 10_000},
        "another dtype": {**feeds, "input_ids": feeds["input_ids"].astype(np.float32)},
        "a missing input": {n: v for n, v in feeds.items() if n != "attention_mask"},
        "another shape": {**feeds, "attention_mask": feeds["attention_mask"][:, :3]},
    }

    def ask(given: object) -> object:
        try:
            return Client(server).ask(model, given, "a")
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [each for one in bad.values() for each in (feeds, one)]))
    for right, wrong in zip(answers[::2], answers[1::2], strict=True):
        np.testing.assert_allclose(right, golden.expected[0], **CLOSE)
        assert isinstance(wrong, InferenceServerException)
        assert wrong.status() in REFUSED, str(wrong)


def test_as_many_names_as_rows(server, expected):
    client, feeds = Client(server), expected["a"].cases[1].feeds
    with pytest.raises(InferenceServerException, match="batch size"):
        client.ask("swappable", feeds, ["a"] * (len(feeds["input_ids"]) + 1))


# --------------------------------------------------------------- parameters, the response cache


def test_a_parameter_names_the_adapter_where_there_is_no_response_cache(server, expected):
    golden, client = expected["b"], Client(server)
    feeds = golden.cases[0].feeds
    found = client.ask("swappable", feeds, parameters={"adapter": "b"})
    np.testing.assert_allclose(found, golden.expected[0], **CLOSE)
    with pytest.raises(InferenceServerException, match="differ"):
        client.ask("swappable", feeds, "a", parameters={"adapter": "b"})


def test_with_a_response_cache_only_the_input_names_it(server, exports, expected):
    client = Client(server)
    feeds = expected["b"].cases[0].feeds
    with pytest.raises(InferenceServerException, match="adapter"):
        client.ask("cached-cached", feeds, parameters={"adapter": "b"})
    with open_export(exports["swappable"]) as session:
        wanted = {name: session.run(feeds, adapter=name)["logits"] for name in ("a", "b")}
    before = server.metrics()
    for name in ("a", "b", "a", "b"):
        found = client.ask("cached-cached", feeds, name)
        np.testing.assert_allclose(found, wanted[name], **CLOSE)
    after = server.metrics()
    key = 'nv_cache_num_hits_per_model{model="cached-cached",version="1"}'
    assert after[key] - before.get(key, 0) >= 2


def test_errors_are_no_answers_of_the_response_cache(server, exports, expected):
    client = Client(server)
    feeds = {name: each[:, ::-1].copy() for name, each in expected["b"].cases[0].feeds.items()}
    with open_export(exports["swappable"]) as session:
        wanted = session.run(feeds, adapter="a")["logits"]
    for _ in range(3):
        with pytest.raises(InferenceServerException, match="there is no adapter nobody"):
            client.ask("cached-cached", feeds, "nobody")
        with pytest.raises(InferenceServerException, match="differ"):
            client.ask("cached-cached", feeds, "a", parameters={"adapter": "b"})
    np.testing.assert_allclose(client.ask("cached-cached", feeds, "a"), wanted, **CLOSE)


def test_requests_are_counted_by_adapter(server, expected):
    def count(adapter: str) -> float:
        labels = f'{{adapter="{adapter}",model="merged",version="1"}}'
        return server.metrics().get(f"lora_export_adapter_requests_total{labels}", 0)

    client, feeds = Client(server), expected["c"].cases[0].feeds
    before = count("c"), count("unknown")
    client.ask("merged", feeds, "c")
    client.ask("merged", feeds, "c")
    with pytest.raises(InferenceServerException):
        client.ask("merged", feeds, "nobody")
    assert (count("c"), count("unknown")) == (before[0] + 2, before[1] + 1)


def test_the_server_has_what_the_repository_says(server, repository):
    models = [*WAYS, "cached", "cached-cached", "swappable-tokenizer", "swappable-text"]
    found = server_problems(f"http://{server.http}", repository, models)
    assert found == {name: [] for name in models}


# ------------------------------------------------------------------------- a live repository


@pytest.fixture(scope="module")
def grown(exports, tiny, tmp_path_factory) -> dict[str, Path]:
    """The exports with a further adapter, ``new``."""
    return grown_exports(tiny, exports, tmp_path_factory.mktemp("grown"))


@pytest.mark.parametrize("model", WAYS)
def test_adapters_come_and_go_while_requests_run(server, repository, grown, expected, model):
    export_dir = grown[WAYS[model][0]]
    golden = expected["a"]
    feeds = golden.cases[0].feeds
    with open_export(export_dir) as session:
        new = session.run(feeds, adapter="new")["logits"]
    assert not np.allclose(new, golden.expected[0], **CLOSE)
    stop, wrong = threading.Event(), []
    counts = {"new": 0, "unknown": 0, "a": 0}

    def run() -> None:
        client = Client(server)
        while not stop.is_set():
            for name, wanted in (("a", golden.expected[0]), ("new", new)):
                try:
                    found = client.ask(model, feeds, name)
                except InferenceServerException as error:
                    if name != "new" or "there is no adapter new" not in str(error):
                        wrong.append(str(error))
                    counts["unknown"] += 1
                    continue
                counts[name] += 1
                if not np.allclose(found, wanted, **CLOSE):
                    wrong.append(f"{name}: {np.abs(found - wanted).max()}")

    threads = [threading.Thread(target=run) for _ in range(2)]
    for each in threads:
        each.start()
    try:
        for _ in range(3):
            add_to_repository(export_dir, repository, ["new"], name=model)
            wait_for(lambda: counts["new"] > 3, reset=counts)
            remove_from_repository(repository, "new", name=model)
            wait_for(lambda: counts["unknown"] > 3, reset=counts)
    finally:
        stop.set()
        for each in threads:
            each.join()
    assert wrong == []


def wait_for(condition, *, reset: dict[str, int] | None = None, seconds: float = 90) -> None:
    for key in reset or ():
        reset[key] = 0
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("mode", ["poll", "explicit"])
def test_a_server_follows_the_repository(home, exports, grown, expected, tmp_path, mode):  # noqa: PLR0917
    repository = tmp_path / "models"
    write_repository(exports["swappable"], repository, name="m", way="merge_at_load")
    options = ["--model-control-mode=" + mode]
    options += ["--repository-poll-secs=1"] if mode == "poll" else ["--load-model=m"]
    golden = expected["a"]
    feeds = golden.cases[0].feeds
    with serving(home, repository, tmp_path / "log", *options) as server:
        client = Client(server)
        np.testing.assert_allclose(client.ask("m", feeds, "a"), golden.expected[0], **CLOSE)
        write_repository(exports["batched"], repository, name="second")
        if mode == "explicit":
            assert server.status("v2/repository/models/second/load", b"{}") == 200
        wait_for(lambda: server.model_ready("second"))
        np.testing.assert_allclose(client.ask("second", feeds, "a"), golden.expected[0], **CLOSE)
        add_to_repository(grown["swappable"], repository, ["new"], name="m")
        with open_export(grown["swappable"]) as session:
            wanted = session.run(feeds, adapter="new")["logits"]
        start = time.monotonic()
        while time.monotonic() < start + 90:  # a server that polls loads the model again meanwhile
            np.testing.assert_allclose(client.ask("m", feeds, "a"), golden.expected[0], **CLOSE)
            try:
                found = client.ask("m", feeds, "new")
            except InferenceServerException as error:
                assert "there is no adapter new" in str(error)  # noqa: PT017  (until it is there)
                continue
            np.testing.assert_allclose(found, wanted, **CLOSE)
            if mode == "explicit" or time.monotonic() > start + 4:
                break
        else:
            pytest.fail("the new adapter never answered")
        assert "Poll failed" not in server.text()


def test_stopped_and_started_under_load_it_never_answers_wrongly(home, exports, expected, tmp_path):
    repository = tmp_path / "models"
    write_repository(exports["swappable"], repository, name="m")
    server = Server(home, repository, tmp_path / "log")
    stop, wrong, answered, refused = threading.Event(), [], [0], [0]

    def run(name: str) -> None:
        client = Client(server)
        golden = expected[name]
        while not stop.is_set():
            try:
                found = client.ask("m", golden.cases[0].feeds, name)
            except InferenceServerException:
                refused[0] += 1
                time.sleep(0.01)
                continue
            answered[0] += 1
            if not np.allclose(found, golden.expected[0], **CLOSE):
                wrong.append(name)

    server.start()
    threads = [threading.Thread(target=run, args=[name]) for name in ("a", "b", "c")]
    for each in threads:
        each.start()
    try:
        for end in (server.stop, server.kill):
            wait_for(lambda before=answered[0]: answered[0] > before + 20)
            end()
            wait_for(lambda before=refused[0]: refused[0] > before + 5)
            server.start()
        wait_for(lambda before=answered[0]: answered[0] > before + 20)
    finally:
        stop.set()
        for each in threads:
            each.join()
        server.stop()
    assert wrong == []


# ---------------------------------------------------------------------------------- the guard


def test_a_numpy_that_the_server_cannot_read_is_refused_at_load(home, exports, tmp_path):
    assert int(np.__version__.split(".")[0]) >= 2
    repository = tmp_path / "models"
    write_repository(exports["swappable"], repository, name="m", text=True)
    server = Server(home, repository, tmp_path / "log", python=Path(sys.executable).parent)
    try:
        with pytest.raises(AssertionError):  # it does not become ready
            server.start()
    finally:
        server.stop()
    assert server.text().count('install "numpy<2"') >= 2  # the tokenizer's model too
