"""Recipes: relative paths, and flags that win over them."""

from __future__ import annotations

import shutil

from tests.cli.exports import (
    assert_intact,
    manifest_of,
    report,
)
from tests.cli.running import call, snapshot
from tests.end_to_end.merge_and_build.example import TASK, write_recipe


def test_recipe_paths_are_relative_to_it_and_flags_win(built, tmp_path, capsys, monkeypatch):
    """Run from elsewhere; the recipe's output, opset and gate are overruled on the command line."""
    folder = tmp_path / "work" / "recipe"
    shutil.copytree(built.base, tmp_path / "work" / "base")
    shutil.copytree(built.adapters["first"], folder / "adapter")
    recipe = write_recipe(
        folder,
        "base: ../base\nadapters:\n  - {name: mine, source: adapter, labels: [a, b, c]}\n"
        f"task: {TASK}\nmode: merged\nlatency: {{max_ratio: 0.0001, rounds: 10, length: 8}}\n"
        "output: ../from-recipe\n",
    )
    monkeypatch.chdir(tmp_path)
    result = call(capsys, "merge-and-build", recipe, "--out", "from-flag", "--max-ratio", 90,
                  "--json")  # fmt: skip
    assert result.code == 0, result.err
    assert not (tmp_path / "work" / "from-recipe").exists()
    out = tmp_path / "from-flag"
    assert manifest_of(out)["adapters"]["mine"]["labels"] == ["a", "b", "c"]
    row = report(out, "latency")["graphs"]["mine"]
    assert (row["max_ratio"], row["rounds"], row["length"]) == (90, 10, 8)
    weights = snapshot(out)["weights/mine.safetensors"]
    assert weights[-4096:] == snapshot(built.out)["weights/first.safetensors"][-4096:]


def test_recipe_alone_builds_where_it_says(built, tmp_path, capsys, monkeypatch) -> None:
    recipe = write_recipe(
        tmp_path / "recipe",
        f"base: {built.base}\nadapters: [{{name: mine, source: {built.adapters['first']}}}]\n"
        f"task: {TASK}\nverify: {{enabled: false}}\nlatency: {{enabled: false}}\n"
        "output: ../out\n",
    )
    monkeypatch.chdir("/")
    result = call(capsys, "merge-and-build", recipe)
    assert result.code == 0, result.err
    assert_intact(tmp_path / "out")
    assert not (tmp_path / "out" / "reports").exists()
    assert manifest_of(tmp_path / "out")["graphs"]["mine"]["verification"] == "unverified"


def test_adapter_flags_replace_the_recipe_s_adapters(built, tmp_path, capsys) -> None:
    recipe = write_recipe(
        tmp_path,
        f"base: {built.base}\nadapters: [{{name: mine, source: /nowhere}}]\noutput: out\n",
    )
    flag = f"other={built.adapters['first']}"
    result = call(capsys, "export", recipe, "--adapter", flag, "--task", TASK)
    assert result.code == 0, result.err
    assert list(manifest_of(tmp_path / "out")["adapters"]) == ["other"]


def test_drop_flag_reaches_the_recipe_s_adapters(built, tmp_path, capsys) -> None:
    """A flag wins over the recipe; a flag that does nothing would be a silent surprise."""
    recipe = write_recipe(
        tmp_path,
        f"base: {built.base}\nadapters: [{{name: mine, source: {built.adapters['first']}}}]\n"
        "output: out\n",
    )
    result = call(capsys, "export", recipe, "--task", "feature-extraction", "--drop", "classifier*")
    assert result.code == 0, result.err
    assert manifest_of(tmp_path / "out")["adapters"]["mine"]["dropped"]


def test_labels_flag_wins_over_the_recipe_s(built, tmp_path, capsys) -> None:
    recipe = write_recipe(
        tmp_path,
        f"base: {built.base}\noutput: out\ntask: {TASK}\nadapters:\n"
        f"  - {{name: mine, source: {built.adapters['first']}, labels: [a, b, c]}}\n",
    )
    result = call(capsys, "export", recipe, "--labels", "x,y,z")
    assert result.code == 0, result.err
    assert manifest_of(tmp_path / "out")["adapters"]["mine"]["labels"] == ["x", "y", "z"]
