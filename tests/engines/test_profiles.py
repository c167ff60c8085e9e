"""Profiles: one that a user gives is for all graphs of an export, and a static cache bounds it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.commands import engines
from lora_export.core.errors import InputError, UsageError
from lora_export.engines.engine_options import EngineOptions
from lora_export.engines.preflight import preflight
from lora_export.engines.profiles import parse_profile, profiles_of
from lora_export.graph.spec.signature import Input
from tests.cli.running import call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TARGET = "jetson-orin"
TEXT = Input("input_ids", "int64", ("batch", "sequence"))
STATIC = (
    TEXT,
    Input("attention_mask", "int64", ("batch", 24)),
    Input("write_indices", "int64", ("batch",)),
    Input("past_key_values.0.key", "float32", ("batch", 2, 24, 8)),
)


def planned(export_dir: Path, *graphs: str, profiles: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the profiles of each engine that a build would make."""
    options = EngineOptions(profiles=[parse_profile(each) for each in profiles])
    rows = engines.plan_build(export_dir, TARGET, graphs=graphs, options=options)
    return {row["graph"]: row["settings"]["profiles"] for row in rows}


def test_a_rank_is_said_of_the_graphs_that_have_one(export: Callable[[str], Path]) -> None:
    export_dir = export("swappable")
    given = ["batch=1:1:4,sequence=1:16:64,lora_r=2:4:8"]
    found = planned(export_dir, "base", "swappable", profiles=given)
    assert set(found["base"][0]) == {"input_ids", "attention_mask"}
    a = next(name for name in found["swappable"][0] if name.endswith(".lora_A.weight"))
    assert [found["swappable"][0][a][key][1] for key in ("min", "opt", "max")] == [2, 4, 8]
    report = preflight(export_dir, TARGET, profiles=[parse_profile(given[0])])
    assert not report.of_severity("error")


def test_an_axis_that_no_graph_has_is_refused(export: Callable[[str], Path], capsys: Any) -> None:
    export_dir = export("swappable")
    flags = ["--target", TARGET, "--profile", "batch=1,lora_rank=1:2:4"]
    for arguments in (
        ["build", export_dir, *flags, "--dry-run"],
        ["preflight", export_dir, *flags],
    ):
        result = call(capsys, *arguments)
        assert result.code == 2, result.err
        assert "the axis 'lora_rank'" in result.message
        assert "lora_r" in result.message


def test_profiles_that_differ_in_axes_of_others_only_are_one(
    export: Callable[[str], Path],
) -> None:
    export_dir = export("swappable")
    same = "batch=1:1:4,sequence=1:16:64"
    found = planned(
        export_dir, "base", "swappable", profiles=[f"{same},lora_r=1:1:2", f"{same},lora_r=2:4:8"]
    )
    assert len(found["base"]) == 1
    assert len(found["swappable"]) == 2


def test_the_text_of_an_encoder_is_what_the_decoder_calls_it(
    export: Callable[[str], Path],
) -> None:
    export_dir = export("pair")
    given = ["batch=1:1:2,encoder_sequence=4:32:64,sequence=1:8:16,past_sequence=0:4:15"]
    found = planned(export_dir, "one", profiles=given)
    assert found["encoder.one"][0]["input_ids"]["max"] == [2, 64]
    decoder = found["decoder.one"][0]
    assert decoder["input_ids"]["max"] == [2, 16]
    assert decoder["encoder_attention_mask"]["min"] == [1, 4]
    assert decoder["past_key_values.0.decoder.key"]["max"][2] == 15


def test_a_static_cache_bounds_the_new_positions() -> None:
    prefill, step = profiles_of(STATIC, longest=512)
    assert prefill["input_ids"].max == (8, 24)
    assert step["input_ids"].max == (8, 1)
    assert prefill["past_key_values.0.key"].min == (1, 2, 24, 8)
    assert prefill["write_indices"].max == (8,)
    (given,) = profiles_of(STATIC, [{"sequence": (1, 8, 24)}], longest=512)
    assert given["input_ids"].max == (8, 24)
    with pytest.raises(UsageError, match="sequence up to 25, the static cache has room for 24"):
        profiles_of(STATIC, [{"sequence": (1, 8, 25)}], longest=512)


def test_a_graph_that_says_no_length_is_cut_to_the_model() -> None:
    (profile,) = profiles_of((TEXT,), longest=77)
    assert profile["input_ids"].max == (8, 77)


def test_a_model_with_a_tower_for_texts_has_its_positions(export: Callable[[str], Path]) -> None:
    export_dir = export("merged")
    config = export_dir / "hf" / "config.json"
    table = json.loads(config.read_text())
    del table["max_position_embeddings"]
    text = {"model_type": "clip_text_model", "max_position_embeddings": 77, "pad_token_id": 9}
    table["text_config"] = text
    config.write_text(json.dumps({**table, "pad_token_id": 9}))
    assert planned(export_dir, "one", profiles=[])["one"][0]["input_ids"]["max"] == [8, 77]
    config.write_text(json.dumps({**table, "text_config": ["rubbish"]}))
    with pytest.raises(InputError, match=r"text_config.*must be a table"):
        planned(export_dir, "one", profiles=[])


def test_plans_for_other_gpus_are_not_made_on_a_jetson(
    export: Callable[[str], Path], capsys: Any
) -> None:
    export_dir = export("merged")
    flags = ["--hardware-compatible", "ampere+", "--dry-run"]
    result = call(capsys, "build", export_dir, "--target", TARGET, *flags)
    assert result.code == 4
    assert "no plans for other GPUs on 'jetson-orin'" in result.message
    assert call(capsys, "build", export_dir, "--target", "a10", *flags).code == 0


def test_two_engines_are_not_refitted(export: Callable[[str], Path], capsys: Any) -> None:
    export_dir = export("pair")
    for arguments in (
        ("build", export_dir, "--target", TARGET, "--refit", "--dry-run"),
        ("bundle", export_dir, "--target", TARGET, "--refit", "-o", export_dir.parent / "b.tar"),
    ):
        result = call(capsys, *arguments)
        assert result.code == 4, result.err
        assert "is one of two" in result.message
    assert not (export_dir.parent / "b.tar").exists()
