"""Recipes: what is read, what a flag overrides, and every mistake named with the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_export.commands.recipe import load_recipe, make_recipe
from lora_export.core.errors import UsageError

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
        ("zzz: 1", "zzz", ""),
    ],
)
def test_an_unknown_key_names_its_nearest_neighbour(line, key, near, load):
    with pytest.raises(UsageError, match="unknown key") as caught:
        load(MINIMAL + line)
    assert repr(key) in caught.value.message
    assert f"Did you mean '{near}" in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def test_the_internal_field_is_no_key(load):
    with pytest.raises(UsageError, match="unknown key 'folder'"):
        load(MINIMAL + "folder: /elsewhere\n")


@pytest.mark.parametrize(
    ("text", "key"),
    [("output: x", "base"), ("base: x", "output"), (MINIMAL + "adapters: [{name: a}]", "source")],
)
def test_a_missing_key_is_named(text, key, load):
    with pytest.raises(UsageError, match="lacks the key") as caught:
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
    with pytest.raises(UsageError, match="holds no keys"):
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
