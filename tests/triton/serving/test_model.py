"""A served model as Triton calls it, against a double of the backend."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.runtime import open_export
from lora_export.triton.live_changes import add_to_repository, remove_from_repository
from lora_export.triton.repository import write_repository
from tests.helpers.backend import Backend, Error, Request, loaded
from tests.helpers.builds import build
from tests.helpers.triton import CLOSE, replaced_exports

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TASK = "text-classification"
WAYS = {
    "merged": ("merged", "merged"),
    "swappable": ("swappable", "swappable"),
    "batched": ("batched", "batched"),
    "at-load": ("swappable", "merge_at_load"),
}
LABELS = {"three": 3, "two": 2, "five": 5}
LOWEST = np.finfo(np.float32).min


def feeds_of(rows: int, length: int = 7) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(3).integers(3, 200, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def bert_feeds(rows: int = 1) -> dict[str, np.ndarray]:
    feeds = feeds_of(rows)
    return {**feeds, "token_type_ids": np.zeros_like(feeds["input_ids"])}


def opened(repository: Path, backend: Backend | None = None, **config: Any) -> Any:
    parameters = {"cache_bytes": str(config.pop("cache_bytes", 1 << 30)), "threads": "1"}
    table = {"parameters": {k: {"string_value": v} for k, v in parameters.items()}, **config}
    return loaded(repository / "m/1", table, backend or Backend())


def served_as(served: Mapping[str, Path], folder: Path, name: str) -> Path:
    mode, way = WAYS[name]
    write_repository(served[mode], folder / "models", name="m", backend="python", way=way)
    return folder / "models"


# --------------------------------------------------------------------------------- who shares


@pytest.fixture(scope="module")
def heads(tiny, tmp_path_factory) -> dict[str, Path]:
    """Exports whose adapters have heads of three widths."""
    root = tmp_path_factory.mktemp("heads")
    base = tiny.base("roberta", TASK)
    adapters = {
        name: tiny.adapter(base, seed=seed, labels_count=count)
        for seed, (name, count) in enumerate(LABELS.items(), 61)
    }
    return {mode: build(base, adapters, root / mode, mode=mode).output
            for mode in ("merged", "swappable", "batched")}  # fmt: skip


@pytest.mark.parametrize("mode", ["merged", "swappable", "batched"])
def test_an_answer_is_as_wide_as_the_heads_of_its_own_rows(heads, tmp_path, mode):
    write_repository(heads[mode], tmp_path / "models", name="m", backend="python")
    model = opened(tmp_path / "models")
    feeds = feeds_of(1)
    names = [None, *LABELS]
    with open_export(heads["merged"]) as session:
        wanted = {name: session.run(feeds, adapter=name)["logits"] for name in names}
    requests = [Request(feeds, [name or ""]) for name in names]
    pair = Request({n: np.repeat(each, 2, 0) for n, each in feeds.items()}, ["", "two"])
    *alone, both = model.execute([*requests, pair])
    for name, response in zip(names, alone, strict=True):
        np.testing.assert_allclose(response["logits"], wanted[name], **CLOSE)
    assert both["logits"].shape == (2, 3)
    np.testing.assert_allclose(both["logits"][:1], wanted[None], **CLOSE)
    np.testing.assert_allclose(both["logits"][1:, :2], wanted["two"], **CLOSE)
    assert both["logits"][1, 2] == LOWEST


# ------------------------------------------------------------------------------ who is at fault


@pytest.mark.parametrize("name", WAYS)
def test_what_is_wrong_with_one_request_harms_no_other(served, tmp_path, name):
    model = opened(served_as(served, tmp_path, name))
    feeds = bert_feeds()
    with open_export(served["merged"]) as session:
        wanted = session.run(feeds, adapter="a")["logits"]
    empty = {n: each[:0] for n, each in feeds.items()}
    bad = [
        (Request(feeds, ["nobody"]), Error.NOT_FOUND, "there is no adapter nobody"),
        (Request(feeds, ["ä\0\n"]), Error.NOT_FOUND, "no adapter '\\xe4\\x00\\n'"),
        (Request(feeds, [b"\xff\xfe"]), Error.NOT_FOUND, "'\\ufffd\\ufffd'"),
        (Request(feeds, ["a", "b"]), Error.INVALID_ARG, "2 name(s), the batch has 1 row(s)"),
        (Request(feeds, None, "{"), Error.INVALID_ARG, "cannot be read"),
        (Request(feeds, None, '{"adapter": 5}'), Error.NOT_FOUND, "there is no adapter 5"),
        (Request({"input_ids": feeds["input_ids"]}, ["a"]), Error.INVALID_ARG, "cannot be read"),
        (Request({**feeds, "attention_mask": feeds["attention_mask"][:, :1]}, ["a"]),
         Error.INVALID_ARG, "'sequence' is 1 in 'attention_mask' and 7 in 'input_ids'"),
        (Request({**feeds, "token_type_ids": feeds["token_type_ids"][:, :1]}, ["a"]),
         Error.INVALID_ARG, "'sequence' is 1 in 'token_type_ids'"),
        (Request(empty, []), Error.INVALID_ARG, "no row"),
        (Request({**feeds, "input_ids": feeds["input_ids"] + 9999}, ["a"]), Error.INVALID_ARG,
         "the graph refuses these inputs"),
    ]  # fmt: skip
    good = Request(feeds, ["a"])
    answers = model.execute([each for row in bad for each in (good, row[0])])
    for right, wrong, (_, code, text) in zip(answers[::2], answers[1::2], bad, strict=True):
        np.testing.assert_allclose(right["logits"], wanted, **CLOSE)
        assert wrong.error is not None
        assert wrong.error.code == code, wrong.error.message
        assert text in wrong.error.message


@pytest.mark.parametrize("name", ["merged", "swappable", "at-load"])
def test_a_damaged_adapter_is_no_fault_of_the_request(served, tmp_path, name):
    repository = served_as(served, tmp_path, name)
    model = opened(repository)
    folder = repository / "m/1/export"
    table = json.loads((folder / "serving.json").read_text())
    for each, content in (("a", b"damaged"), ("b", None)):
        path = folder / table["adapters"][each]["file"]
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    feeds = bert_feeds()
    broken, missing, right = model.execute([Request(feeds, [each]) for each in ("a", "b", "c")])
    assert broken.error.code == Error.INTERNAL, broken.error.message
    assert missing.error.code == Error.UNAVAILABLE, missing.error.message
    with open_export(served["merged"]) as session:
        wanted = session.run(feeds, adapter="c")["logits"]
    np.testing.assert_allclose(right["logits"], wanted, **CLOSE)


def test_an_adapter_too_large_for_the_cache_is_said(served, tmp_path):
    model = opened(served_as(served, tmp_path, "swappable"), cache_bytes=10)
    (answer,) = model.execute([Request(bert_feeds(), ["a"])])
    assert answer.error.code == Error.UNAVAILABLE
    assert "cache_bytes is 10" in answer.error.message


# -------------------------------------------------------------------------- what changes meanwhile


@pytest.fixture(scope="module")
def other(served, tiny, tmp_path_factory) -> dict[str, Path]:
    """The exports with another adapter called ``a``."""
    return replaced_exports(tiny, served, tmp_path_factory.mktemp("other"))


@pytest.mark.parametrize("name", ["merged", "swappable", "at-load"])
def test_an_adapter_replaced_between_a_batch_and_its_run_is_the_new_one(
    served, other, tmp_path, monkeypatch, name
):
    repository = served_as(served, tmp_path, name)
    model = opened(repository)
    export = other[WAYS[name][0]]
    refresh = model._refresh
    calls = []

    def replaced_after_the_look() -> None:
        refresh()
        if not calls:
            add_to_repository(export, repository, ["a"], replace=True)
        calls.append(1)

    monkeypatch.setattr(model, "_refresh", replaced_after_the_look)
    feeds = bert_feeds()
    (answer,) = model.execute([Request(feeds, ["a"])])
    with open_export(export) as session:
        np.testing.assert_allclose(
            answer["logits"], session.run(feeds, adapter="a")["logits"], **CLOSE
        )
    calls.clear()
    monkeypatch.setattr(
        model, "_refresh",
        lambda: (refresh(), calls or remove_from_repository(repository, "b"), calls.append(1)),
    )  # fmt: skip
    (answer,) = model.execute([Request(feeds, ["b"])])
    assert answer.error.code == Error.NOT_FOUND, answer.error.message


def test_a_graph_replaced_while_it_is_opened_is_the_new_one(served, other, tmp_path, monkeypatch):
    repository = served_as(served, tmp_path, "batched")
    model = opened(repository)  # its module, to see how it begins again
    watch = type(model._watch)
    changed = watch.changed
    calls: list[int] = []

    def replaced_after_the_look(self: Any) -> Any:
        found = changed(self)
        if not calls:
            add_to_repository(other["batched"], repository, ["a"], replace=True)
        calls.append(1)
        return found

    monkeypatch.setattr(watch, "changed", replaced_after_the_look)
    again = type(model)()
    again.initialize({
        "model_config": json.dumps({"parameters": {
            "cache_bytes": {"string_value": "0"}, "threads": {"string_value": "1"}}}),
        "model_name": "m", "model_version": "1", "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    })  # fmt: skip
    feeds = bert_feeds()
    (answer,) = again.execute([Request(feeds, ["a"])])
    with open_export(other["batched"]) as session:
        wanted = session.run(feeds, adapter_ids=["a"])["logits"]
    np.testing.assert_allclose(answer["logits"], wanted, **CLOSE)


# ------------------------------------------------------------------------------------- metrics


def test_a_batch_changes_each_metric_once(served, tmp_path):
    backend = Backend()
    model = opened(served_as(served, tmp_path, "swappable"), backend)
    feeds = bert_feeds()
    batch = [Request(feeds, [each]) for each in ("a", "b", "a", "", "nobody")]
    model.execute(batch)
    assert backend.metrics["lora_export_adapter_requests_total", "a"] == 2
    assert backend.metrics["lora_export_adapter_requests_total", "b"] == 1
    assert backend.metrics["lora_export_adapter_requests_total", "base"] == 1
    assert backend.metrics["lora_export_adapter_requests_total", "unknown"] == 1
    assert backend.metrics["lora_export_adapter_loads_total", ""] == 2
    assert backend.metrics["lora_export_adapter_cached_bytes", ""] > 0
    before = backend.messages
    model.execute(batch)
    assert backend.messages - before == 4  # one for each adapter, none for what has not moved
    model.finalize()
    assert backend.metrics["lora_export_adapter_cached_bytes", ""] == 0
