"""Settings, versions and profiles of engines, as values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_export.core.errors import UsageError
from lora_export.engines.profiles import profiles_of
from lora_export.graph.spec.signature import Input
from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.build_record import plan_file, record_file
from lora_export.ondevice.trt.build_settings import BuildSettings, ShapeRange
from lora_export.ondevice.trt.versions import parse_version


def test_settings_travel_as_json() -> None:
    profile = {"x": ShapeRange((1, 2), (3, 4), (5, 6)), "y": ShapeRange((0,), (0,), (1,))}
    settings = BuildSettings(
        "float16", (profile,), 1 << 30, 5, version_compatible=True, refittable=("a", "b")
    )
    assert BuildSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    "change",
    [
        {"profiles": [{"x": {"min": [1], "opt": [2]}}]},
        {"profiles": [{"x": {"min": [1], "opt": [0], "max": [2]}}]},
        {"profiles": [{"x": {"min": [1], "opt": [2, 2], "max": [3]}}]},
        {"profiles": 3},
        {"hardware_compatibility": "volta"},
        {"optimization_level": 9},
        {"workspace_bytes": 0},
        {"workspace_bytes": 2**64},
        {"profiles": [{"x": {"min": [1], "opt": [2], "max": [2**31]}}]},
        {"unknown": 1},
    ],
)
def test_settings_of_strangers_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DeviceError):
        BuildSettings.from_json({**BuildSettings("float32").to_json(), **change})


def test_versions() -> None:
    assert [parse_version(each) for each in ("10.3.0", "11.4.0.106", "10.13.3.9")] == [
        (10, 3), (11, 4), (10, 13)
    ]  # fmt: skip
    for text in ("", "ten", "10"):
        with pytest.raises(DeviceError, match="not a version"):
            parse_version(text)
    with pytest.raises(DeviceError, match="older than"):
        parse_version("8.6.1")


def test_names_of_files() -> None:
    plan = plan_file("decoder.one", "jetson-orin", "10.3.0")
    assert plan == "engines/decoder.one.jetson-orin.trt10.3.0.plan"
    assert record_file(plan) == "engines/decoder.one.jetson-orin.trt10.3.0.json"


TEXT = [Input("input_ids", "int64", ("batch", "sequence"))]
CACHED = [
    *TEXT,
    Input("attention_mask", "int64", ("batch", "total_sequence")),
    Input("past_key_values.0.key", "float16", ("batch", 4, "past_sequence", 8)),
]


def test_default_profiles_follow_the_model() -> None:
    (profile,) = profiles_of(TEXT, longest=64)
    assert profile["input_ids"] == ShapeRange((1, 1), (1, 64), (8, 64))
    prefill, decode = profiles_of(CACHED, longest=2048)
    assert prefill["past_key_values.0.key"].min == (1, 4, 0, 8)
    assert prefill["attention_mask"].max == (8, 512 + 1024)
    assert decode["input_ids"] == ShapeRange((1, 1), (1, 1), (8, 1))
    assert decode["attention_mask"] == ShapeRange((1, 1), (1, 257), (8, 1025))


def test_ranks_have_a_profile_from_1_on() -> None:
    lora = [*TEXT, Input("a.lora_A.weight", "float32", (32, "a.lora_r"))]
    (profile,) = profiles_of(lora, longest=512, ranks=[4, 8])
    assert profile["a.lora_A.weight"] == ShapeRange((32, 1), (32, 8), (32, 64))
    (profile,) = profiles_of(lora, longest=512, ranks=[128])
    assert profile["a.lora_A.weight"].max == (32, 128)
    (profile,) = profiles_of(lora, [{"lora_r": (2, 4, 4)}], longest=512)
    assert profile["a.lora_A.weight"] == ShapeRange((32, 2), (32, 4), (32, 4))


def test_axes_that_nobody_knows_are_asked_for() -> None:
    odd = [Input("x", "float32", ("batch", "depth", ""))]
    with pytest.raises(UsageError, match="'depth' of 'x'"):
        profiles_of(odd, longest=512)
    (profile,) = profiles_of(odd, [{"depth": (1, 2, 3), "x.2": (4, 4, 4)}], longest=512)
    assert profile["x"] == ShapeRange((1, 1, 4), (1, 2, 4), (8, 3, 4))
    with pytest.raises(UsageError, match="no dynamic axis"):
        profiles_of([Input("x", "float32", (1, 2))], [{"batch": (1, 1, 1)}], longest=1)
    assert profiles_of([Input("x", "float32", (1, 2))], longest=1) == ()
