"""A graph, some of whose inputs are the same in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.ondevice.graph_runner import GraphRunner, Input
from lora_export.ondevice.judge.preset_runner import PresetRunner

if TYPE_CHECKING:
    from collections.abc import Mapping


class Echo(GraphRunner):
    """A graph that returns what it is fed, the first of all as its output."""

    def __init__(self, *inputs: str) -> None:
        self.inputs = (*inputs, "adapter_ids")
        self.optional: Mapping[str, Input] = {
            name: Input(name, "float32", ()) for name in ("lora_scale", "a.lora_A.weight")
        }
        self.outputs = inputs[:1]
        self.closed = False

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return dict(feeds)

    def close(self) -> None:
        self.closed = True


TEXTS = {"input_ids": np.zeros((3, 5), np.int64), "attention_mask": np.ones((3, 5), np.int64)}
IMAGES = {"pixel_values": np.zeros((3, 1, 4, 4), np.float32)}


@pytest.mark.parametrize("feeds", [TEXTS, IMAGES])
def test_every_row_of_texts_and_of_images_has_its_adapter(feeds):
    runner = PresetRunner(Echo(*feeds), {"lora_scale": np.float32(2)}, row=7)
    found = runner.run(feeds)
    assert found["adapter_ids"].tolist() == [7, 7, 7]
    assert found["adapter_ids"].dtype == np.int64
    assert found["lora_scale"] == 2


def test_what_is_preset_is_no_input_any_more():
    runner = PresetRunner(Echo("input_ids"), {"lora_scale": np.float32(2)}, row=1)
    assert runner.inputs == ("input_ids",)
    assert list(runner.optional) == ["a.lora_A.weight"]
    assert runner.outputs == ("input_ids",)


def test_the_first_output_has_the_columns_of_the_adapter():
    runner = PresetRunner(Echo("input_ids", "attention_mask"), row=1, width=2)
    found = runner.run(TEXTS)
    assert found["input_ids"].shape == (3, 2)
    assert found["attention_mask"].shape == (3, 5)


def test_a_runner_is_a_context_manager_that_closes_its_graph():
    graph = Echo("input_ids")
    with PresetRunner(graph, row=1) as runner:
        runner.run(TEXTS)
        assert not graph.closed
    assert graph.closed
