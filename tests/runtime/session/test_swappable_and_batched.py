"""A session's adapters as inputs and as rows, against PEFT."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.commands.add import add
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.runtime import open_export
from tests.cli.exports import peft_model, run_torch
from tests.helpers.builds import build
from tests.runtime.session.example import CLOSE, FEEDS, TASK, feeds_of

if TYPE_CHECKING:
    from pathlib import Path


def test_each_way_gives_what_peft_gives(swappable, by_peft):
    with open_export(swappable) as session:
        for name in "abc":
            assert session.ways(name) == ("swappable", "merge_at_load")
            for how in session.ways(name):
                found = session.run(FEEDS, adapter=name, how=how)["logits"]
                np.testing.assert_allclose(found, by_peft[name], **CLOSE)


def test_swapping_is_bit_stable_and_the_base_stays_the_base(swappable):
    sequence = ["b", "c", None, "b", "b", None, "c"]
    with open_export(swappable) as session:
        found: dict[Any, list[np.ndarray]] = {}
        for name in sequence:
            found.setdefault(name, []).append(session.run(FEEDS, adapter=name)["logits"])
        base = session.run(FEEDS, how="merged")["logits"]
    for each in found.values():
        assert all(np.array_equal(each[0], other) for other in each[1:])
    assert np.array_equal(found[None][0], base)
    assert not np.allclose(found["b"][0], found["c"][0])


def test_outputs_are_the_callers_and_no_later_run_writes_over_them(swappable):
    with open_export(swappable) as session:
        first = session.run(FEEDS, adapter="b")["logits"]
        kept = first.copy()
        session.run(feeds_of(seed=5), adapter="b")
        session.run(feeds_of(rows=5, length=3), adapter="b")
        assert np.array_equal(first, kept)
    gc.collect()
    assert np.array_equal(first, kept)


def test_an_optional_input_lasts_one_run(swappable):
    zero = {**FEEDS, "lora_scale": np.zeros((), np.float32)}
    head = {"lora_scale": np.ones((), np.float32)}
    with open_export(swappable) as session:
        full = session.run(FEEDS, adapter="b")["logits"]
        silent = session.run(zero, adapter="b")["logits"]
        assert not np.allclose(full, silent)
        assert np.array_equal(session.run(FEEDS, adapter="b")["logits"], full)
        with pytest.raises(UsageError, match="no input 'lora_scale'"):
            session.run({**FEEDS, **head}, adapter="a", how="merge_at_load")


def scaled_peft(base: Path, adapter: Path, scale: float) -> np.ndarray:
    """Return what PEFT gives with its scaling multiplied."""
    model = peft_model(base, adapter, TASK, labels_count=3)
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(scale)
    return run_torch(model, FEEDS)


@pytest.mark.parametrize("scale", [0.5, 2, np.array(0.5, np.float32)])
def test_the_scale_is_that_of_peft_as_a_number_or_an_array(swappable, base, adapters, scale):
    with open_export(swappable) as session:
        found = session.run({**FEEDS, "lora_scale": scale}, adapter="b")["logits"]
    np.testing.assert_allclose(found, scaled_peft(base, adapters["b"], float(scale)), **CLOSE)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (np.array(0.5), "lora_scale.*float64, the graph reads float32"),
        (np.array([0.5], np.float32), r"lora_scale.*\[1\], the graph reads \[\]"),
        ("half", "lora_scale"),
    ],
)
def test_a_scale_that_does_not_fit_is_refused_before_the_run(swappable, scale, message):
    with open_export(swappable) as session, pytest.raises(UsageError, match=message):
        session.run({**FEEDS, "lora_scale": scale}, adapter="b")


def test_values_that_hold_for_the_scale_1_are_not_run_with_another(tiny, base, tmp_path):
    """DoRA's factors, and biases that hold a B's, depend on the scale; a pack has them for 1."""
    both = {
        "dora": tiny.adapter(base, seed=24, use_dora=True),
        "biased": tiny.adapter(base, seed=25, lora_bias=True),
    }
    export_dir = build(base, both, tmp_path / "out", mode="swappable").output
    with open_export(export_dir) as session:
        for name in both:
            full = session.run(FEEDS, adapter=name)["logits"]
            one = session.run({**FEEDS, "lora_scale": 1}, adapter=name)["logits"]
            assert np.array_equal(one, full)
            with pytest.raises(UnsupportedError, match=f"lora_scale is 0.5.*{name!r}") as caught:
                session.run({**FEEDS, "lora_scale": 0.5}, adapter=name)
            assert "--scale NAME=0.5" in (caught.value.hint or "")
        session.run({**FEEDS, "lora_scale": 0.5})
    for name, adapter in both.items():  # what the hint says
        add(export_dir, [AdapterSpec(name=f"half-{name}", source=str(adapter), scale=0.5)])
    with open_export(export_dir) as session:
        for name, adapter in both.items():
            found = session.run(FEEDS, adapter=f"half-{name}")["logits"]
            np.testing.assert_allclose(found, scaled_peft(base, adapter, 0.5), **CLOSE)


def test_each_row_of_a_batch_has_its_own_adapter(batched, by_peft):
    with open_export(batched) as session:
        assert session.ways("b") == ("batched", "merge_at_load")
        rows = session.run(feeds_of(4), adapter_ids=[0, "b", 1, None])["logits"]
        for row, name in enumerate([None, "b", "a", None]):
            alone = {key: value[row : row + 1] for key, value in feeds_of(4).items()}
            expected = session.run(alone, adapter=name)["logits"]
            np.testing.assert_allclose(rows[row], expected[0], **CLOSE)
        for name, expected in by_peft.items():
            found = session.run(FEEDS, adapter_ids=[name, name])["logits"]
            np.testing.assert_allclose(found, expected, **CLOSE)
        assert not np.allclose(rows[1], session.run(feeds_of(4))["logits"][1], **CLOSE)


@pytest.mark.parametrize("ids", [[1], [1, 1, 1], [], "ab", 3])
def test_rows_that_do_not_fit_the_batch_are_refused(batched, ids):
    with open_export(batched) as session, pytest.raises(UsageError, match="2 row"):
        session.run(FEEDS, adapter_ids=ids)


@pytest.mark.parametrize("wrong", [4, -1, "zebra", 2.0, True])
def test_an_unknown_row_is_refused_with_those_that_there_are(batched, wrong):
    with open_export(batched) as session, pytest.raises(UsageError, match="no row") as caught:
        session.run(FEEDS, adapter_ids=[1, wrong])
    assert "a (1), b (2), c (3)" in (caught.value.hint or "")
