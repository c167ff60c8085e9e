"""Adapters that do not fit the base, and names that an adapter cannot have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.cli.exports import manifest_of
from tests.end_to_end.bad_input.spoiling import (
    ADAPTER_FILE,
    TASK,
    Inputs,
    assert_refused,
    build,
    edit_json,
    edit_tensors,
    poison,
)

if TYPE_CHECKING:
    from collections.abc import Callable


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"


def rename_module(tensors):
    return {k.replace(".query.", ".wquery."): v for k, v in tensors.items()}


def stray_tensor(tensors):
    tensors["base_model.model.bert.encoder.layer.7.output.dense.bias"] = np.zeros(32, np.float32)


def stray_lora_kind(tensors):
    tensors["base_model.model.bert.encoder.layer.0.lora_C.weight"] = np.zeros(3, np.float32)


def widen(tensors):
    tensors[QUERY] = np.zeros((4, 33), np.float32)


def drop_partner(tensors):
    del tensors[QUERY]


def three_axes(tensors):
    tensors[QUERY] = np.zeros((4, 32, 1), np.float32)


def rank_zero(tensors):
    for name in tensors:
        if "lora_A" in name:
            tensors[name] = tensors[name][:0]
        elif "lora_B" in name:
            tensors[name] = np.ascontiguousarray(tensors[name][:, :0])


def other_rank(tensors):
    tensors[QUERY] = np.ascontiguousarray(tensors[QUERY][:2])


def integers(tensors):
    tensors[QUERY] = np.zeros((4, 32), np.int64)


def wide_head(tensors):
    tensors["base_model.model.classifier.weight"] = np.zeros((3, 48), np.float32)


def uneven_head(tensors):
    tensors["base_model.model.classifier.bias"] = np.zeros(5, np.float32)


MISFITS: dict[str, tuple[Callable[[Any], Any], int, str]] = {
    "unknown module": (rename_module, 3, "wquery"),
    "matches nothing": (stray_tensor, 3, "layer.7.output.dense.bias"),
    "unknown kind": (stray_lora_kind, 4, "lora_C"),
    "wrong width": (widen, 3, "query"),
    "no partner": (drop_partner, 3, "query"),
    "three axes": (three_axes, 3, "query"),
    "rank 0": (rank_zero, 3, "rank"),
    "another rank": (other_rank, 3, "rank"),
    "integers": (integers, 3, "int64"),
    "head of another width": (wide_head, 3, "classifier.weight"),
    "head's weight and bias disagree": (uneven_head, 3, "classifier"),
}


@pytest.mark.parametrize("fault", MISFITS)
def test_adapter_that_does_not_fit(inputs: Inputs, capsys, fault: str) -> None:
    change, code, word = MISFITS[fault]
    edit_tensors(inputs.adapter / ADAPTER_FILE, change)
    if fault == "rank 0":
        edit_json(inputs.adapter / "adapter_config.json", r=0)
    assert_refused(build(capsys, inputs), inputs, code, word)


def test_adapter_for_a_wider_base_names_tensors_and_shapes(tiny, inputs: Inputs, capsys) -> None:
    wide = tiny.base("bert", TASK, hidden_size=64)
    misfit = inputs._replace(adapter=tiny.adapter(wide))
    assert_refused(build(capsys, misfit), misfit, 3, "query", "[64, 64]", "[32, 32]")


def test_adapter_for_another_architecture_names_its_modules(tiny, inputs, capsys) -> None:
    misfit = inputs._replace(adapter=tiny.adapter(tiny.base("distilbert", TASK)))
    assert_refused(build(capsys, misfit), misfit, 3, "q_lin")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_in_an_adapter(inputs: Inputs, tmp_path, capsys, value) -> None:
    poison(inputs.adapter, tmp_path / "poisoned", value)
    bad = inputs._replace(adapter=tmp_path / "poisoned")
    assert_refused(build(capsys, bad), bad, 3, "NaN or infinity", "lora_B")


def test_nan_in_a_saved_head(inputs: Inputs, capsys) -> None:
    def change(tensors):
        tensors["base_model.model.classifier.bias"] = np.full(3, np.nan, np.float32)

    edit_tensors(inputs.adapter / ADAPTER_FILE, change)
    assert_refused(build(capsys, inputs), inputs, 3, "classifier.bias")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("base", 3), ("swappable", 3), ("batched", 3), ("model", 3), ("Upper", 3), ("-first", 3),
        ("_first", 3), ("a.b", 3), ("a b", 3), ("ünicode", 3), ("a" * 65, 3), ("a\n", 3),
        ("..", 3),
    ],
)  # fmt: skip
def test_reserved_or_ill_formed_name(inputs: Inputs, capsys, name: str, code: int) -> None:
    assert_refused(build(capsys, inputs, name=name), inputs, code, "name")


def test_well_formed_names_are_taken(inputs: Inputs, capsys) -> None:
    name = "0-a_" + "b" * 60
    assert build(capsys, inputs, name=name).code == 0
    assert list(manifest_of(inputs.out)["adapters"]) == [name]


def test_two_adapters_of_one_name(inputs: Inputs, capsys) -> None:
    result = build(capsys, inputs, "--adapter", f"mine={inputs.adapter}")
    assert_refused(result, inputs, 3, "'mine'")
