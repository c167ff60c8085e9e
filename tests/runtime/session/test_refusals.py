"""Unknown adapters, modes and inputs, adapters of other models: refused with what there is."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from lora_export.core.errors import AdapterError, MissingRuntimeError, UnsupportedError, UsageError
from lora_export.runtime import open_export
from tests.helpers.builds import build
from tests.runtime.session.example import FEEDS, TASK


def test_an_unknown_adapter_is_an_error_that_lists_the_known_ones(export, adapters):
    with (
        open_export(export, adapters={"b": adapters["b"]}) as session,
        pytest.raises(AdapterError, match="no adapter 'zebra'") as caught,
    ):
        session.run(FEEDS, adapter="zebra")
    assert "a, b" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"adapter": "a", "how": "swappable"}, UnsupportedError, "no swappable graph"),
        ({"adapter": "a", "how": "quick"}, UsageError, "'quick'"),
        ({"how": "quick"}, UsageError, "'quick'"),
        ({"how": "swappable"}, UnsupportedError, "no swappable graph"),
        ({"adapter_ids": [0, 1]}, UnsupportedError, "no batched graph"),
        ({"adapter_ids": [0, 1], "adapter": "a"}, UsageError, "adapter_ids"),
    ],
)
def test_a_way_that_there_is_not_is_refused(export, arguments, error, message):
    with open_export(export) as session, pytest.raises(error, match=message):
        session.run(FEEDS, **arguments)


IDS = FEEDS["input_ids"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "also reads 'input_ids'"),
        ({"pixels": IDS}, "no input 'pixels'"),
        ({"input_ids": IDS.astype(np.int32)}, "int32.*int64"),
        ({"input_ids": IDS[0]}, r"\[7\].*'batch', 'sequence'"),
        ({"input_ids": IDS[:1]}, "'batch'.*2"),
    ],
)
def test_inputs_that_do_not_fit_are_named_before_anything_runs(export, change, message):
    feeds = {name: value for name, value in {**FEEDS, **change}.items() if value is not None}
    with open_export(export) as session, pytest.raises(UsageError, match=message):
        session.run(feeds, adapter="a")


def test_inputs_and_outputs_can_be_asked_for(export):
    with open_export(export) as session:
        assert {each.name: each.axes for each in session.inputs} == dict.fromkeys(
            FEEDS, ("batch", "sequence")
        )
        assert [(each.name, each.axes) for each in session.outputs] == [("logits", ("batch", 3))]


def test_a_closed_session_refuses(export):
    with open_export(export) as session:
        session.load("a")
    for arguments in ({}, {"adapter": "a"}):
        with pytest.raises(UsageError, match="closed"):
            session.run(FEEDS, **arguments)


def test_a_provider_that_is_not_there_is_no_reason_to_run_on_another(export):
    with pytest.raises(MissingRuntimeError, match="'cuda'") as caught:
        open_export(export, provider="cuda")
    assert "CPUExecutionProvider" in (caught.value.hint or "")


def test_an_adapter_of_another_task_or_another_model_is_refused(tiny, export, adapters):
    other = tiny.base("bert", "token-classification")
    tokens = tiny.adapter(other, task="token-classification")
    with pytest.raises(UsageError, match="token-classification"):
        open_export(export, adapters={"new": tokens})
    roberta = tiny.adapter(tiny.base("distilbert", TASK))
    with pytest.raises(AdapterError):
        open_export(export, adapters={"new": roberta})
    with pytest.raises(AdapterError, match="not the adapter 'a'"):
        open_export(export, adapters={"a": adapters["b"]})
    with pytest.raises(AdapterError, match="not allowed"):
        open_export(export, adapters={"New!": adapters["b"]})


def test_an_adapter_that_is_moved_is_found_where_it_is_given(tiny, base, tmp_path):
    mine = shutil.copytree(tiny.adapter(base, seed=41), tmp_path / "mine")
    export_dir = build(base, {"mine": mine}, tmp_path / "out").output
    mine.rename(tmp_path / "moved")
    with open_export(export_dir) as session:
        merged = session.run(FEEDS, adapter="mine")["logits"]
        with pytest.raises(AdapterError, match="was not found at"):
            session.run(FEEDS, adapter="mine", how="merge_at_load")
    with open_export(export_dir, adapters={"mine": tmp_path / "moved"}) as session:
        found = session.run(FEEDS, adapter="mine", how="merge_at_load")["logits"]
    assert np.array_equal(found, merged)


def test_an_adapter_that_changes_while_the_session_is_open_is_refused(tiny, base, export, tmp_path):
    mine = shutil.copytree(tiny.adapter(base, seed=41), tmp_path / "mine")
    with open_export(export, adapters={"mine": mine}) as session:
        shutil.rmtree(mine)
        shutil.copytree(tiny.adapter(base, seed=42), mine)
        with pytest.raises(AdapterError, match="has changed since it was opened"):
            session.run(FEEDS, adapter="mine")
