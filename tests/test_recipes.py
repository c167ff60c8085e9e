"""Every recipe makes valid ONNX, which TensorRT can take on every target that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
import pytest

from lora_export.base.targets import TARGETS
from lora_export.engine.preflight import preflight
from lora_export.engine.profiles import axis_ranges
from lora_export.pipeline import merge_and_build
from lora_export.recipe import load_recipe
from tests.helpers.slow import but_the_first

RECIPES: Final = sorted(Path(__file__).parents[1].glob("recipes/*/recipe.yaml"))
ENGINES: Final = tuple(row.name for row in TARGETS.values() if row.tensorrt)


def test_there_are_recipes():
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", but_the_first(RECIPES), ids=lambda path: path.parent.name)
def test_its_graphs_are_valid_and_pass_preflight(path, tmp_path):
    given = load_recipe(path)
    if not given.path(given.base).is_dir():
        pytest.skip(f"{given.base} is not here: make model fetches it")
    off = {"enabled": False}
    recipe = load_recipe(path, {"output": str(tmp_path / "out"), "verify": off, "latency": off})
    outcome = merge_and_build(recipe)
    for graph in outcome.manifest.graphs.values():
        for file in graph.graph_files:
            onnx.checker.check_model(str(tmp_path / "out" / file), full_check=True)
    profiles = [axis_ranges(profile) for profile in recipe.profiles]
    for name in recipe.targets or ENGINES:
        for version in (TARGETS[name].tensorrt[0], TARGETS[name].tensorrt[-1]):
            report = preflight(tmp_path / "out", name, tensorrt=version, profiles=profiles)
            assert not report.of_severity("error"), (name, version)
