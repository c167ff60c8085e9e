"""``fleet.yaml``: what it may say, and the sentence for what it may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.commands.fleet.spec import GRAPH_KEYS, ROW_KEYS, load_fleet, merged_settings
from lora_export.commands.recipe import Recipe
from lora_export.core.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
bases:
  tiny: {path: base, task: text-classification}
adapters:
  - {base: tiny, path: adapters/*, exclude: "*-old"}
store: out
"""


def load(tmp_path: Path, text: str) -> object:
    """Return the fleet in a text."""
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return load_fleet(path)


def test_defaults(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(GOOD)
    fleet = load_fleet(tmp_path / "fleet.yaml")
    assert fleet.targets == ["onnxruntime-cpu"]
    assert fleet.adapters[0].exclude == ["*-old"]
    assert [each.settings() for each in fleet.variants] == [{}]
    assert fleet.bases["tiny"].settings() == {"task": "text-classification"}
    assert fleet.path(fleet.store) == tmp_path / "out"


def test_cpu_is_short_for_onnxruntime(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(GOOD + "targets: cpu\n")
    assert load_fleet(tmp_path / "fleet.yaml").targets == ["onnxruntime-cpu"]


BAD = {
    "an unknown key": (GOOD + "target: cpu\n", "unknown key 'target'", "targets"),
    "an unknown key of a base": (
        GOOD.replace("task:", "taks:"), "unknown key 'bases.tiny.taks'", "task",
    ),
    "a key of an adapter in a variant": (
        GOOD + "variants: [{alpha: 1}]\n", "unknown key 'variants.0.alpha'", "",
    ),
    "an unknown gate": (GOOD + "gates: {max_rato: 1}\n", "'gates.max_rato'", "max_ratio"),
    "a gate that is none": (GOOD + "gates: {max_ratio: 0}\n", "gates.max_ratio", ""),
    "a base that is not there": (GOOD.replace("base: tiny", "base: tny"), "'tny'", "tiny"),
    "no bases": ("bases: {}\nadapters: [{base: a, path: b}]\nstore: out\n", "'bases'", ""),
    "no adapters": ("bases: {a: {path: b}}\nstore: out\n", "no key 'adapters'", ""),
    "no store": (GOOD.replace("store: out", ""), "no key 'store'", ""),
    "a name that is a path": (GOOD.replace("tiny:", "../tiny:"), "bases", ""),
    "the folder": (GOOD + "folder: x\n", "unknown key 'folder'", ""),
    "a list": ("[1]", "has no keys", ""),
    "not YAML": ("a: [", "not YAML", ""),
    "nothing": ("", "has no keys", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_fleet_is_one_sentence(case: str, tmp_path: Path) -> None:
    text, message, hint = BAD[case]
    with pytest.raises(UsageError) as error:
        load(tmp_path, text)
    assert message in error.value.message
    assert "\n" not in error.value.message
    assert hint in str(error.value.hint)


def test_a_fleet_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the fleet"):
        load_fleet(tmp_path / "none.yaml")


def test_every_key_of_a_recipe_is_a_key_of_fleets_or_is_left_out_knowingly() -> None:
    left_out = {"base", "base_override", "graph", "adapters", "combine", "targets", "profiles",
                "bundle", "triton", "layouts", "output", "folder"}  # fmt: skip
    assert set(Recipe.model_fields) == {*GRAPH_KEYS, *ROW_KEYS} | left_out


def test_the_nearest_layer_wins_and_sections_are_merged() -> None:
    base = {"quantize": "int4", "verify": {"seed": 1, "enabled": True}, "labels": ["a"]}
    variant = {"quantize": {"block_size": 64}, "dtype": "float16"}
    adapter = {"verify": {"enabled": False}, "labels": None}
    assert merged_settings(base, variant, adapter) == {
        "quantize": {"weights": "int4", "block_size": 64},
        "verify": {"seed": 1, "enabled": False},
        "labels": None,
        "dtype": "float16",
    }
