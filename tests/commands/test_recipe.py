"""Recipes: what is read, what a flag overrides, and every mistake named with the nearest key."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from lora_export.commands.recipe import load_recipe, make_recipe
from lora_export.core.errors import UsageError
from tests.helpers.odd_values import mutated, with_each

if TYPE_CHECKING:
    from collections.abc import Callable

MINIMAL = "base: the-base\noutput: out\n"


@pytest.fixture
def load(tmp_path):
    def run(text: str | bytes, overrides=None):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_recipe(path, overrides)

    return run


def test_defaults(load):
    recipe = load(MINIMAL)
    assert (recipe.mode, recipe.adapters, recipe.task, recipe.dtype) == ("merged", [], None, None)
    assert recipe.verify.enabled
    assert recipe.latency.enabled
    assert recipe.latency.max_ratio == 1.05


def test_every_section_is_read(load):
    recipe = load(
        MINIMAL
        + """
adapters:
  - {name: one, source: ./a, drop: ["classifier.*"], labels: [x, y]}
  - {source: ./b}
task: text-classification
labels: [x, y]
dtype: float16
opset: 20
targets: [onnxruntime-cuda]
verify: {dataset: data.jsonl, seed: 7, allow_no_effect: true}
latency: {max_ratio: 1.2, batch: 4, length: 16, rounds: 30}
"""
    )
    assert [spec.name for spec in recipe.adapters] == ["one", None]
    assert recipe.adapters[0].drop == ["classifier.*"]
    assert recipe.verify.seed == 7
    assert recipe.latency.batch == 4
    assert (recipe.opset, recipe.dtype) == (20, "float16")


def test_paths_are_taken_from_the_recipes_folder(load, tmp_path):
    recipe = load("base: ../base\noutput: /abs/out\n")
    assert recipe.path(recipe.base) == tmp_path / "../base"
    assert recipe.path(recipe.output) == Path("/abs/out")
    assert recipe.path("~/x") == Path.home() / "x"


def test_the_shipped_recipe_is_valid():
    path = Path(__file__).parents[2] / "recipes" / "minilm-intents" / "recipe.yaml"
    recipe = load_recipe(path)
    assert recipe.labels is not None
    assert len(recipe.labels) == len(set(recipe.labels)) >= 12
    assert recipe.path(recipe.adapters[0].source).is_dir()
    assert recipe.verify.dataset is not None
    assert recipe.path(recipe.verify.dataset).is_file()


# --------------------------------------------------------------------------------------- flags


def test_a_flag_wins_and_sections_are_merged_key_by_key(load):
    text = MINIMAL + "dtype: float16\nverify: {seed: 3, dataset: d.jsonl}\n"
    recipe = load(text, {"dtype": "float32", "verify": {"enabled": False}})
    assert recipe.dtype == "float32"
    assert (recipe.verify.enabled, recipe.verify.seed, recipe.verify.dataset) == (
        False,
        3,
        "d.jsonl",
    )


def test_a_flag_may_bring_what_the_recipe_lacks(load):
    recipe = load("base: b\n", {"output": "elsewhere", "latency": {"rounds": 20}})
    assert recipe.output == "elsewhere"
    assert recipe.latency.rounds == 20


def test_a_list_of_a_flag_replaces_the_recipes(load):
    recipe = load(MINIMAL + "adapters: [{source: a}]\n", {"adapters": [{"source": "b"}]})
    assert [spec.source for spec in recipe.adapters] == ["b"]


# ------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("line", "key", "near"),
    [
        ("adaptors: []", "adaptors", "adapters"),
        ("lables: [x]", "lables", "labels"),
        ("ouput: x", "ouput", "output"),
        ("verify: {data_set: x}", "verify.data_set", "dataset"),
        ("latency: {max-ratio: 2}", "latency.max-ratio", "max_ratio"),
        ("adapters: [{source: a, nam: b}]", "adapters.0.nam", "name"),
    ],
)
def test_an_unknown_key_names_its_nearest_neighbour(line, key, near, load):
    with pytest.raises(UsageError, match="unknown key") as caught:
        load(MINIMAL + line)
    assert repr(key) in caught.value.message
    assert f"Did you mean '{near}" in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def test_an_unknown_key_without_a_neighbour_suggests_none(load):
    with pytest.raises(UsageError, match="unknown key 'zzz'") as caught:
        load(MINIMAL + "zzz: 1")
    assert (caught.value.hint or "").startswith("Known: base, ")


def test_the_internal_field_is_no_key(load):
    with pytest.raises(UsageError, match="unknown key 'folder'"):
        load(MINIMAL + "folder: /elsewhere\n")


@pytest.mark.parametrize(
    ("text", "key"),
    [("output: x", "base"), ("base: x", "output"), (MINIMAL + "adapters: [{name: a}]", "source")],
)
def test_a_missing_key_is_named(text, key, load):
    with pytest.raises(UsageError, match="has no key") as caught:
        load(text)
    assert key in caught.value.message


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("opset: 17", "opset"),
        ("opset: 26", "opset"),
        ("opset: high", "opset"),
        ("mode: swapable", "mode"),
        ("labels: x", "labels"),
        ("labels: [1, 2]", "labels"),
        ("adapters: {one: a}", "adapters"),
        ("adapters: [a]", "adapters"),
        ("verify: yes please", "verify"),
        ("verify: {seed: x}", "verify.seed"),
        ("verify: {metric: speed}", "verify.metric"),
        ("latency: {rounds: 9}", "latency.rounds"),
        ("latency: {max_ratio: 0}", "latency.max_ratio"),
        ("latency: {max_ratio: .inf}", "latency.max_ratio"),
        ("latency: {batch: 0}", "latency.batch"),
        ("base: [x]", "base"),
        ("base: 7", "base"),
        ("targets: [onnxruntime-cpu, onnxruntime-cuda]", "targets"),
    ],
)
def test_a_bad_value_is_named_with_what_was_given(line, key, load):
    text = line + "\noutput: out\n" if line.startswith("base") else MINIMAL + line
    with pytest.raises(UsageError) as caught:
        load(text)
    assert key in caught.value.message
    assert "got " in caught.value.message


@pytest.mark.parametrize(
    "text",
    ["base: [", "\tbase: x", b"\xff\xfe\x00", "!!python/object/apply:os.system ['true']",
     "base: &a [*a", "[" * 5000],
)  # fmt: skip
def test_what_is_not_yaml_is_refused(text, load):
    with pytest.raises(UsageError, match="not YAML"):
        load(text)


@pytest.mark.parametrize("text", ["", "just text", "- base", "3", "# a comment"])
def test_what_holds_no_keys_is_refused(text, load):
    with pytest.raises(UsageError, match="is not a mapping"):
        load(text)


def test_keys_that_are_no_text_are_refused(load):
    with pytest.raises(UsageError):
        load(MINIMAL + "1: x\n")


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path):
    for path in (tmp_path / "gone.yaml", tmp_path):
        with pytest.raises(UsageError, match="cannot read the recipe"):
            load_recipe(path)


def test_a_file_too_large_for_a_recipe_is_refused(load):
    with pytest.raises(UsageError, match="larger than"):
        load(MINIMAL + "#" * (1 << 20))


def test_recipes_are_frozen():
    recipe = make_recipe({"base": "b", "output": "o"}, folder=Path())
    with pytest.raises(ValueError, match="frozen"):
        recipe.base = "c"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (MINIMAL + "base: another\n", "base"),
        (MINIMAL + "adapters:\n  - {source: a, source: b}\n", "source"),
        (MINIMAL + "verify:\n  seed: 1\n  seed: 2\n", "seed"),
    ],
)
def test_a_key_that_stands_twice_is_refused(text, key, load):
    with pytest.raises(UsageError, match=f"'{key}' stands twice"):
        load(text)


def test_a_missing_output_names_its_flag(load):
    with pytest.raises(UsageError) as caught:
        load("base: x\n")
    assert "--out" in caught.value.hint
    assert "--output" not in caught.value.hint


FULL: Final[dict[str, Any]] = {
    "base": "b", "graph": "g", "task": "t", "labels": ["x"], "mode": "merged", "dtype": "float16",
    "adapters": [
        {"name": "one", "source": "a", "subfolder": "f", "scale": 1.0, "drop": ["x"],
         "labels": ["x"], "format": "peft", "alpha": 1.0, "enable_lora": [True]},
    ],
    "combine": {"method": "ties", "weights": [1.0], "density": 0.5, "rank": 4, "name": "n",
                "majority_sign_method": "total", "seed": 0, "head_from": "one"},
    "lora_modules": ["q"], "opset": 20, "cache": True, "cache_length": 8, "logits": "all",
    "targets": ["onnxruntime-cpu"], "profiles": [{"batch": 1, "length": [1, 2, 3]}],
    "verify": {"enabled": True, "dataset": "d", "metric": "f1", "max_new_tokens": 1, "seed": 0,
               "allow_no_effect": True},
    "latency": {"enabled": True, "max_ratio": 1.1, "batch": 1, "length": 1, "rounds": 10},
    "bundle": {"enabled": True, "file": "f", "refit": True, "allow_failed": True},
    "triton": {"repository": "r", "name": "n", "backend": "python", "way": "merged",
               "adapters": ["one"], "text": True, "max_batch_size": 1, "instances": 1, "gpus": [0],
               "versions": [1], "resources": {"r": 1}, "cache_bytes": 1, "priority": 1},
    "output": "o",
}  # fmt: skip
"""A recipe with every section, and every key of the sections that are read from files."""


def _refusal(read: Callable[[], object]) -> str:
    """Return the message of the usage error of `read`; ``""`` where it raises nothing."""
    try:
        read()
    except UsageError as error:
        return error.message
    return ""


def test_every_key_with_every_odd_value_is_read_or_a_usage_error():
    tables = list(with_each(FULL))
    for section in ("combine", "verify", "latency", "bundle", "triton"):
        tables += [(what, {**FULL, section: table}) for what, table in with_each(FULL[section])]
    for what, table in with_each(FULL["adapters"][0]):
        tables += [(what, {**FULL, "adapters": [table]})]
    for what, table in tables:
        message = _refusal(partial(make_recipe, table, folder=Path()))
        assert len(message) < 1_000, what
        assert "\n" not in message, what


def test_mutated_recipes_are_read_or_a_usage_error(load):
    numbers = random.Random(19)
    for _ in range(40):
        text = json.dumps(mutated(FULL, numbers))
        text = text.replace("Infinity", ".inf").replace("NaN", ".nan").replace("x" * 100_000, "x")
        assert len(_refusal(partial(load, text, {"scale": {"": 2.0}}))) < 1_000


def test_an_adapters_name_as_a_list_is_named_with_a_scale_too(load):
    text = MINIMAL + "adapters: [{name: [a], source: x}]\n"
    with pytest.raises(UsageError, match=r"adapters.0.name.*got \['a'\]"):
        load(text, {"scale": {"": 2.0}})


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999", "2001-99-99", "!!int x"])
def test_a_seed_that_numpy_would_not_take_is_a_usage_error(seed, load):
    with pytest.raises(UsageError):
        load(MINIMAL + f"verify: {{seed: {seed}}}\n")


def test_a_home_that_does_not_exist_is_an_ordinary_path(load):
    recipe = load(MINIMAL)
    assert recipe.path("~nobody-of-that-name/x").parts[-2:] == ("~nobody-of-that-name", "x")
    with pytest.raises(UsageError, match="cannot read the recipe"):
        load_recipe("~nobody-of-that-name/recipe.yaml")
