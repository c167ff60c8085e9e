"""Every recipe makes valid ONNX, which TensorRT can take on every target that it names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import onnx
import pytest

from lora_export.commands.build import merge_and_build
from lora_export.commands.recipe import load_recipe
from lora_export.core.targets import TARGETS
from lora_export.engines.preflight import preflight
from lora_export.engines.profiles import axis_ranges
from tests.helpers.slow import but_the_first

if TYPE_CHECKING:
    from lora_export.commands.recipe import Recipe

RECIPES: Final = sorted(Path(__file__).parents[2].glob("recipes/*/recipe.yaml"))
ENGINES: Final = tuple(row.name for row in TARGETS.values() if row.tensorrt)


def test_there_are_recipes():
    assert len(RECIPES) >= 2


def test_the_adapter_of_the_intents_names_its_classes_as_the_recipe_does():
    folder = Path(__file__).parents[2] / "recipes/minilm-intents"
    named = json.loads((folder / "adapter/config.json").read_text("utf-8"))["id2label"]
    labels = load_recipe(folder / "recipe.yaml").labels
    assert [named[str(index)] for index in range(len(named))] == labels


def built(path: Path, output: Path) -> tuple[Recipe, list[Path]]:
    """Build a recipe; return it, and the ONNX files that it makes."""
    given = load_recipe(path)
    if not given.path(given.base).is_dir():
        pytest.skip(f"{given.base} is not here: make model fetches it")
    off = {"enabled": False}
    recipe = load_recipe(path, {"output": str(output), "verify": off, "latency": off})
    outcome = merge_and_build(recipe)
    graphs = outcome.manifest.graphs.values()
    return recipe, [output / file for graph in graphs for file in graph.graph_files]


@pytest.mark.parametrize("path", but_the_first(RECIPES), ids=lambda path: path.parent.name)
def test_its_graphs_are_valid_and_pass_preflight(path, tmp_path):
    recipe, files = built(path, tmp_path / "out")
    for file in files:
        onnx.checker.check_model(str(file), full_check=True)
    profiles = [axis_ranges(profile) for profile in recipe.profiles]
    for name in recipe.targets or ENGINES:
        for version in (TARGETS[name].tensorrt[0], TARGETS[name].tensorrt[-1]):
            report = preflight(tmp_path / "out", name, tensorrt=version, profiles=profiles)
            assert not report.of_severity("error"), (name, version)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_polygraphy_finds_nothing(path, tmp_path):
    """NVIDIA's tool takes the graphs apart and writes them again, and lints them node by node."""
    pytest.importorskip("polygraphy", reason="needs the dev extra: make env")
    pytest.importorskip("onnx_graphsurgeon", reason="needs the dev extra: make env")
    _, files = built(path, tmp_path / "out")
    for file in files:
        cleaned = str(file.with_name("cleaned.onnx"))
        for arguments in (
            ["surgeon", "sanitize", str(file), "--cleanup", "--toposort", "-o", cleaned],
            ["check", "lint", str(file)],
        ):
            program = "import sys; from polygraphy.tools import main; sys.exit(main())"
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", program, *arguments],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "PASSED" in done.stdout
        onnx.checker.check_model(cleaned)
