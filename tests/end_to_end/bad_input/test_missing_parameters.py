"""Heads that nobody has, heads that are dropped, labels that do not fit the head."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cli.exports import manifest_of
from tests.cli.running import call
from tests.end_to_end.bad_input.spoiling import (
    ADAPTER_FILE,
    TASK,
    Inputs,
    assert_refused,
    build,
    edit_json,
    edit_tensors,
)

if TYPE_CHECKING:
    from tests.helpers.models import TinyModels


def test_parameters_that_nobody_has_are_listed(tiny: TinyModels, inputs: Inputs, capsys) -> None:
    bare = tiny.base("bert", "feature-extraction")
    result = call(capsys, "export", "--base", bare, "--task", TASK, "--out", inputs.out)
    assert_refused(result, inputs, 3, "classifier.weight", "classifier.bias", "--task")


def test_parameters_that_an_adapter_does_not_bring_are_listed(tiny, inputs, capsys) -> None:
    bare = tiny.base("bert", "feature-extraction")
    adapter = tiny.adapter(bare, task="feature-extraction", labels_count=None)
    headless = inputs._replace(base=bare, adapter=adapter)
    assert_refused(build(capsys, headless), headless, 3, "classifier.weight", "--task")


def test_head_under_feature_extraction_needs_an_explicit_drop(tiny, inputs, capsys) -> None:
    base = tiny.base("bert", "feature-extraction")
    adapter = tiny.adapter(base, labels_count=3, seed=4)
    arguments = ("merge-and-build", "--base", base, "--adapter", f"a={adapter}",
                 "--task", "feature-extraction", "--no-latency", "--out", inputs.out)  # fmt: skip
    result = call(capsys, *arguments)
    assert_refused(result, inputs, 3, "classifier.weight", "--drop")
    result = call(capsys, *arguments, "--drop", "classifier*")
    assert result.code == 0, result.err + result.out
    manifest = manifest_of(inputs.out)
    row = manifest["adapters"]["a"]
    assert row["dropped"] == ["classifier.bias", "classifier.weight"]
    assert row["tensors_applied"] == row["tensors_total"] - 2
    assert manifest["graphs"]["a"]["verification"] == "pass"


def test_drop_that_matches_nothing_is_a_usage_error(inputs: Inputs, capsys) -> None:
    assert_refused(build(capsys, inputs, "--drop", "no.such*"), inputs, 2, "no.such*")


@pytest.mark.parametrize("labels", ["one", "one,two", "a,b,c,d"])
def test_wrong_number_of_labels(inputs: Inputs, capsys, labels: str) -> None:
    result = build(capsys, inputs, "--labels", labels)
    assert_refused(result, inputs, 2, str(labels.count(",") + 1), "3")


def test_wrong_number_of_labels_for_the_base_s_own_head(tiny, inputs, capsys) -> None:
    """The adapter brings no head: the base's has three outputs, and two names are given."""
    adapter = tiny.adapter(inputs.base, seed=6, modules_to_save=[])
    edit_tensors(
        shutil.copytree(adapter, inputs.adapter, dirs_exist_ok=True) / ADAPTER_FILE,
        lambda tensors: {k: v for k, v in tensors.items() if "classifier" not in k},
    )
    edit_json(inputs.adapter / "adapter_config.json", modules_to_save=None)
    assert_refused(build(capsys, inputs, "--labels", "yes,no"), inputs, 2, "2", "3")


def test_a_head_that_the_config_lists_and_the_file_lacks(tiny, inputs, capsys) -> None:
    adapter = tiny.adapter(inputs.base, seed=6)
    edit_tensors(
        shutil.copytree(adapter, inputs.adapter, dirs_exist_ok=True) / ADAPTER_FILE,
        lambda tensors: {k: v for k, v in tensors.items() if "classifier" not in k},
    )
    assert_refused(build(capsys, inputs), inputs, 3, "classifier", "modules_to_save")


def test_wrong_number_of_labels_without_adapters(inputs: Inputs, capsys) -> None:
    result = call(capsys, "export", "--base", inputs.base, "--task", TASK, "--labels", "yes,no",
                  "--out", inputs.out)  # fmt: skip
    assert_refused(result, inputs, 2, "2", "3")
