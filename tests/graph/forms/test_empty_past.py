from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from lora_export.graph.forms.empty_past import with_any_empty_past
from tests.graph.forms.running import close, empty_past, run, session
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


@pytest.fixture(scope="module")
def llama(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tiny.base("llama", "text-generation")
    out = tmp_path_factory.mktemp("llama") / "out"
    build(base, {"mine": tiny.adapter(base, task="text-generation", labels_count=None)}, out)
    return out


def test_an_empty_past_of_another_shape_is_that_of_the_graph(llama: Path) -> None:
    graph = (llama / "mine.onnx").read_bytes()
    before, after = session(llama, graph), session(llama, with_any_empty_past(graph))
    ids = np.random.default_rng(0).integers(3, 200, (2, 5))
    mask = np.ones((2, 5), np.int64)
    mask[1, :2] = 0
    places = np.maximum(np.cumsum(mask, 1) - 1, 0)
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    wrong = empty_past(after, 2, heads=4, width=16)
    expected = run(before, {**feeds, **empty_past(before, 2, heads=2, width=8)})
    found = run(after, {**feeds, **wrong})
    assert all(close(found[name], expected[name], 1e-6) for name in expected)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run(before, {**feeds, **wrong})
    past = {
        name.replace("present.", "past_key_values."): value
        for name, value in expected.items()
        if name != "logits"
    }
    step = {"input_ids": ids[:, :1], "attention_mask": np.hstack([mask, mask[:, 2:3]]),
            "position_ids": places[:, -1:] + 1, **past}  # fmt: skip
    assert close(run(after, step)["logits"], run(before, step)["logits"], 1e-6)


def test_a_graph_without_a_past_stays(tiny: TinyModels, tmp_path: Path) -> None:
    base = tiny.base("bert")
    build(base, {"mine": tiny.adapter(base)}, tmp_path / "out")
    graph = (tmp_path / "out" / "mine.onnx").read_bytes()
    assert with_any_empty_past(graph) == graph
