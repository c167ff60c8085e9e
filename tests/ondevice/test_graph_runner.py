"""One contract: everything that runs a graph declares it and is named beside it."""

from __future__ import annotations

import importlib
import re

import pytest

from lora_export.ondevice import graph_runner
from lora_export.ondevice.graph_runner import GraphRunner, Input

MODULES = (
    "ondevice.judge.pair_runner",
    "ondevice.judge.preset_runner",
    "ondevice.ort.ort_session",
    "ondevice.trt.refit",
    "ondevice.trt.trt_runner",
    "runtime.ort",
    "runtime.ort_encoder_decoder",
    "runtime.swappable",
    "runtime.torch_runner",
    "runtime.trt",
)


def runners() -> list[type]:
    for name in MODULES:
        importlib.import_module(f"lora_export.{name}")
    return [each for each in GraphRunner.__subclasses__() if each.__module__.startswith("lora_")]


def test_the_table_names_every_runner() -> None:
    table = (graph_runner.__doc__ or "").partition("=\n")[2]
    names = {
        n
        for row in re.findall(r"^(`.*?)  ", table, re.MULTILINE)
        for n in re.findall(r"`(\w+)`", row)
    }
    assert names == {each.__name__ for each in runners()}


@pytest.mark.parametrize("runner", runners(), ids=lambda each: each.__name__)
def test_a_runner_has_its_own_run_and_close(runner: type) -> None:
    assert {"run", "close"} <= vars(runner).keys()
    assert not getattr(runner, "__abstractmethods__", None)


def test_axes_with_a_name_are_the_callers() -> None:
    assert Input("input_ids", "int64", ("batch", 4, "sequence")).dynamic == (0, 2)
