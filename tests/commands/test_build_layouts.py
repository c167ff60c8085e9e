"""``merge_and_build`` writes the layouts that a recipe names, beside the export."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import call, snapshot

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """
base: {base}
adapters:
  - {{name: a, source: {adapter}}}
task: text-generation
output: out
verify: {{enabled: false}}
latency: {{enabled: false}}
"""


@pytest.fixture(scope="module")
def base(tiny):
    return tiny.base("llama", "text-generation", tokenizer=True)


@pytest.fixture
def write(tiny, base, tmp_path):
    adapter = tiny.adapter(base, task="text-generation", seed=1)

    def write_recipe(more: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.format(base=base, adapter=adapter) + more)
        return path

    return write_recipe


def test_layouts_are_written_beside_the_export_and_returned(write, tmp_path, capsys):
    recipe = write("layouts: [genai, optimum]\n")
    result = call(capsys, "merge-and-build", recipe, "--json")
    assert result.code == 0, result.err
    found = {row["runtime"]: row for row in result.document["layouts"]}
    assert list(found) == ["genai", "optimum"]
    for runtime, row in found.items():
        folder = tmp_path / f"out-{runtime}"
        assert row["output"] == str(folder)
        record = json.loads((folder / "a" / "lora_export_layout.json").read_text())
        assert (record["runtime"], record["adapters"]) == (runtime, ["a"])
    before = snapshot(tmp_path / "out-genai")
    again = call(capsys, "merge-and-build", recipe, "--out", tmp_path / "out")
    assert again.code == 0, again.err  # the export is extended, and its layouts replaced
    assert f"layout for genai: {tmp_path / 'out-genai' / 'a'}" in again.out
    assert snapshot(tmp_path / "out-genai").keys() == before.keys()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("layouts: [vllm]\n", (2, "layouts")),
        ("layouts: [genai, genai]\n", (2, "twice")),
        ("layouts: [genai]\ncache: false\n", (4, "the graph has no cache")),
        ("layouts: [genai]\ncache_length: 64\n", (4, "static cache")),
        ("layouts: [genai]\nmode: batched\n", (4, "batched")),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_built(write, tmp_path, capsys, more, said):
    result = call(capsys, "merge-and-build", write(more))
    code, named = said
    assert (result.code, named in result.message) == (code, True), result.err
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


def test_what_is_in_the_way_of_a_layout_is_left_alone(write, tmp_path, capsys):
    (tmp_path / "out-genai").mkdir()
    (tmp_path / "out-genai/mine").write_text("mine")
    result = call(capsys, "merge-and-build", write("layouts: [genai]\n"))
    assert (result.code, "out-genai" in result.message) == (3, True)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out-genai/mine").read_text() == "mine"
