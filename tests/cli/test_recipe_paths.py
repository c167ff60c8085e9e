"""Flags beside a recipe: their paths are those of the working directory, not of the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cli.running import call

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.helpers.models import TinyModels


def test_an_output_that_looks_like_an_id_of_the_hub_is_a_path(
    tiny: TinyModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    base = tiny.base("bert", "text-classification")
    (recipes / "recipe.yaml").write_text(f"base: {base}\noutput: elsewhere\n")
    monkeypatch.chdir(tmp_path)
    done = call(capsys, "export", "recipes/recipe.yaml", "--out", "build/here")
    assert done.code == 0, done.err
    assert (tmp_path / "build/here/lora_export.json").is_file()
    assert sorted(path.name for path in recipes.iterdir()) == ["recipe.yaml"]
