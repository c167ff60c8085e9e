"""``--graph-form ort``: what it does not go together with."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_export.commands.build_checks import require_recipe
from lora_export.commands.build_form import require_form_for
from lora_export.commands.recipe import make_recipe
from lora_export.core.errors import LoraExportError
from lora_export.graph.spec import tasks
from lora_export.graph.spec.signature import Choices


def recipe(**changes):
    table = {"base": "b", "output": "out", "graph_form": "ort", "verify": {"enabled": False}}
    return make_recipe({**table, "latency": {"enabled": False}, **changes}, folder=Path("/"))


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"targets": ["jetson-orin"]}, 4, "'jetson-orin' has TensorRT"),
        ({"targets": ["rtx"]}, 4, "'rtx' has TensorRT"),
        ({"triton": {"repository": "models"}}, 4, "is not served"),
        ({"opset": 21}, 2, "opset of its own"),
        ({"graph": "mine.onnx"}, 2, "keeps its form"),
        ({"cache_length": 64}, 4, "no static cache"),
        ({"graph_form": "fast"}, 2, "graph_form"),
    ],
)
def test_settings_that_contradict_it(changes, code, named):
    with pytest.raises(LoraExportError, match=named) as caught:
        require_recipe(recipe(**changes))
    assert caught.value.exit_code == code
    assert caught.value.hint or "graph_form" in changes


@pytest.mark.parametrize(
    ("task", "dtype", "cache", "named"),
    [
        ("text-classification", "float32", False, "text-classification"),
        ("text2text-generation", "float32", True, "text2text-generation"),
        ("text-generation", "float32", False, "--no-cache"),
        ("text-generation", "bfloat16", True, "bfloat16"),
    ],
)
def test_graphs_that_cannot_have_it(task, dtype, cache, named):
    with pytest.raises(LoraExportError, match=named) as caught:
        require_form_for(recipe(), tasks.by_name(task), dtype, Choices(cache=cache))
    assert caught.value.exit_code == 4
    require_form_for(recipe(), tasks.by_name("text-generation"), "float32", Choices())
    portable = recipe(graph_form="portable", targets=["jetson-orin"])
    require_form_for(portable, tasks.by_name(task), dtype, Choices(cache=cache))
