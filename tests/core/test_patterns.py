"""Patterns of strangers are bounded before they are matched; those of transformers pass."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING

import pytest

from lora_export.adapters.formats.peft_scale import (
    rank_by_config,
    require_affordable,
)
from lora_export.core.errors import AdapterError, ExportDirectoryError
from lora_export.core.manifest import read_manifest
from lora_export.core.name_conversions import Conversion, new_name
from lora_export.core.patterns import REPEATED, ways
from tests.cli.exports import manifest_of

if TYPE_CHECKING:
    from pathlib import Path

EXPONENTIAL = [
    "(a+)+b",
    "(a*)*b",
    "(a|a)*b",
    "(?:a+)+b",
    "(a|aa)+$",
    "([a-z]+)*b",
    "(a?){40}a{40}",
    "a?" * 40 + "a" * 40,
    "(ab|ab)" * 40 + "c",
    "(?:(?:a|b)|[ab])" * 40 + "c",
    ".*.*.*.*.*.*x",
]
"""Each takes years on a name of a few dozen letters."""


@pytest.mark.parametrize("pattern", EXPONENTIAL)
def test_what_could_take_forever_is_refused_before_it_is_matched(pattern):
    with pytest.raises(ValueError, match="could take forever"):
        Conversion(f"(?P<g0>{pattern})", ("x",))


def test_a_long_list_of_alternatives_is_accepted():
    layers = "|".join(f"layer.{index}" for index in range(40))
    pattern = rf"({layers})\.self_attn\.q_proj"
    config = {"r": 8, "rank_pattern": {pattern: 4}}
    modules = [f"model.layer.{index}.self_attn.q_proj" for index in (0, 39, 40)]
    require_affordable(modules, config, "a")
    assert [rank_by_config(each, config) for each in modules] == [4, 4, 8]


def test_patterns_that_take_long_to_compile_are_refused():
    config = {"rank_pattern": {f"{index}{'a' * 4_000}": 4 for index in range(300)}}
    with pytest.raises(AdapterError, match="very long to match"):
        require_affordable(["q_proj"], config, "a")


@pytest.mark.parametrize("pattern", ["(?P<g0>.*a.*a)", "(?P<g0>x{2}(a|b|c).*(d|e))|(?P<g1>y.*z)"])
def test_what_is_let_through_ends_soon_on_the_worst_name(pattern):
    rule = Conversion(pattern, ("x",))
    started = time.monotonic()
    assert new_name("a" * 20 + "b" * 490, [rule]).name
    assert new_name("x" * 512, [rule]).name == "x" * 512
    assert new_name("a" * 100_000, [rule]).name == "a" * 100_000  # no parameter is called so
    assert time.monotonic() - started < 5


def test_ways_are_counted_by_the_structure():
    assert ways(r"\(a+\)+") == REPEATED**2  # no group: the brackets are letters
    assert ways(r"[(a+)+]") == 1
    assert ways("(a|b)(c|d)|e") == 5
    assert ways("((a|b)|c)d?") == 6
    assert ways("(?=a)(?!b|c)(?<!d)(?<=e)f") == 2
    assert ways("(?P<name>a*)") == REPEATED
    for strange in ("(?i)a", "(?P=name)", "(?#x)a", "(?>a+)b"):
        assert ways(strange) == math.inf
    assert ways("a)b(") == 1  # no pattern at all; who compiles it says so


def test_every_rule_of_transformers_is_let_through():
    from transformers import conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    from lora_export.graph.trace.conversion_rules import read_rule

    mapping = conversion_mapping._build_checkpoint_conversion_mapping()
    assert len(mapping) > 50
    seen = 0
    for rules in mapping.values():
        for rule in rules:
            if isinstance(rule, WeightConverter | WeightRenaming):
                assert read_rule(rule).pattern
                seen += 1
    assert seen > 100


def test_an_export_with_such_a_rule_is_refused(tiny, tmp_path: Path):
    from tests.helpers.builds import build

    build(tiny.base("bert"), {}, tmp_path / "out")
    table = manifest_of(tmp_path / "out")
    rule = {"pattern": "(?P<g0>(a+)+b)", "targets": ["x"], "operations": [], "prefix": ""}
    table["base"]["conversions"] = [rule]
    (tmp_path / "out" / "lora_export.json").write_text(json.dumps(table))
    with pytest.raises(ExportDirectoryError, match=r"conversions\.0.*could take forever"):
        read_manifest(tmp_path / "out")
