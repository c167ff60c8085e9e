"""The recipe of a decoder: what its README says holds for the exported graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_export.commands.build import merge_and_build
from lora_export.commands.recipe import load_recipe
from tests.cli.running import call

RECIPE = Path(__file__).parents[2] / "recipes" / "gpt2-python" / "recipe.yaml"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    output = tmp_path_factory.mktemp("gpt2-python") / "out"
    flags = {"output": str(output), "latency": {"enabled": False}}
    return merge_and_build(load_recipe(RECIPE, flags))


def test_logits_and_greedy_tokens_are_torchs(outcome) -> None:
    graphs = outcome.reports.parity.graphs
    for name in ("base", "this"):
        assert graphs[name].verdict == "pass"
        assert graphs[name].greedy.disagreements == 0
        assert graphs[name].greedy.agreeing_tokens == 16
    assert graphs["this"].effect > 0.01


@pytest.mark.parametrize(("adapter", "word"), [((), "self"), (("--adapter", "this"), "this")])
def test_the_adapter_writes_this_where_the_base_writes_self(outcome, capsys, adapter, word) -> None:
    for prompt in ("    def close(", "    def read(", "    def write("):
        result = call(capsys, "generate", outcome.output, *adapter, "--prompt", prompt,
                      "--max-new-tokens", "4", "--quiet")  # fmt: skip
        assert result.code == 0, result.err
        assert f"{prompt}{word}" in result.out
