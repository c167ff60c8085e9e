"""The recipes for a Jetson: what their READMEs tell people to type does what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import call

if TYPE_CHECKING:
    from tests.cli.running import Result

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("jetson-gpt2", "jetson-roberta-refit", "jetson-minilm")


def commands(name: str) -> list[list[str]]:
    """Return the commands of a README that run here."""
    text = (RECIPES / name / "README.md").read_text("utf-8")
    (block,) = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for line in block.splitlines()]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipes and the checkpoint, in which a README's commands can be typed."""
    (tmp_path / "recipes").symlink_to(RECIPES)
    copies = tmp_path / "work" / "recipes"
    copies.mkdir(parents=True)
    for each in RECIPES.iterdir():
        (copies / each.name).mkdir()
        for file in each.iterdir():
            (copies / each.name / file.name).symlink_to(file)
    (tmp_path / "work" / "models").symlink_to(RECIPES.parent / "models")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def typed(capsys: pytest.CaptureFixture[str], words: list[str]) -> Result | None:
    """Run a command as it is typed; return what one of ours left."""
    if words[0] == "lora-export":
        return call(capsys, *words[1:])
    done = subprocess.run(
        [sys.executable, *words[1:]], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    if words[1].endswith("run.py"):
        assert "TensorRT did not run" in done.stdout
        assert "fail" not in done.stdout
    return None


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name != NAMES[0] else ()) for name in NAMES],
)
def test_the_readme_can_be_followed(name, checkout, capsys) -> None:
    lines = commands(name)
    assert any(words[1].endswith("run.py") for words in lines)
    for words in lines:
        result = typed(capsys, words)
        assert result is None or result.code == 0, result.err


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_is_for_a_jetson(name) -> None:
    from lora_export.commands.recipe import load_recipe

    recipe = load_recipe(RECIPES / name / "recipe.yaml")
    assert recipe.targets == ["jetson-orin"]
    assert recipe.bundle.file is not None
