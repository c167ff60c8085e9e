from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch

from lora_export.core.errors import UnsupportedError
from lora_export.graph.forms.token_states import with_token_states
from tests.graph.forms.running import close, run, session
from tests.helpers.builds import build
from tests.helpers.models import load_tiny
from tests.helpers.sentences import save_sentences

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

CASES = {
    "mean": ("bert", ("mean_tokens",), {}),
    "dense": ("bert", ("cls_token", "max_tokens"), {"dense": 12}),
    "last": ("llama", ("lasttoken",), {"normalize": False}),
    "weighted": ("roberta", ("weightedmean_tokens",), {}),
}


@pytest.fixture(
    scope="module",
    params=[
        "mean",
        "dense",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("last", "weighted")),
    ],
)
def exported(
    request: pytest.FixtureRequest, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    kind, flags, settings = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    plain = tiny.base(kind, "feature-extraction")
    base = save_sentences(plain, folder / "base", *flags, **settings)
    adapter = tiny.adapter(plain, task="feature-extraction", labels_count=None)
    build(base, {"mine": adapter}, folder / "out")
    return base, folder / "out"


def test_the_states_are_those_of_torch_and_the_embedding_stays(
    exported: tuple[Path, Path],
) -> None:
    base, out = exported
    mask = np.ones((2, 6), np.int64)
    mask[1, 4:] = 0
    feeds = {"input_ids": np.random.default_rng(0).integers(3, 200, (2, 6)), "attention_mask": mask}
    graph = (out / "base.onnx").read_bytes()
    changed = with_token_states(graph, dense=["2_Dense"])
    before, after = session(out, graph), session(out, changed)
    more = {
        each.name: np.zeros((2, 6), np.int64)
        for each in before.get_inputs()
        if each.name == "token_type_ids"
    }
    found = run(after, {**feeds, **more})
    assert list(found) == ["last_hidden_state", "sentence_embedding"]
    with torch.inference_mode():
        expected = load_tiny(base, "feature-extraction")(
            **{name: torch.tensor(value) for name, value in feeds.items()}
        ).last_hidden_state.numpy()
    assert close(found["last_hidden_state"][mask == 1], expected[mask == 1])
    embedding = run(before, {**feeds, **more})["sentence_embedding"]
    assert close(found["sentence_embedding"], embedding, 1e-6)
    assert with_token_states(changed) == changed


def test_a_pooling_whose_dense_layer_is_not_named_is_refused(exported: tuple[Path, Path]) -> None:
    graph = (exported[1] / "mine.onnx").read_bytes()
    if b"2_Dense" in graph:
        with pytest.raises(UnsupportedError, match=r"expected \[batch, sequence, a width\]"):
            with_token_states(graph)


def test_a_graph_without_a_pooling_is_refused(tiny: TinyModels, tmp_path: Path) -> None:
    base = tiny.base("bert")
    build(base, {"mine": tiny.adapter(base)}, tmp_path / "out")
    with pytest.raises(UnsupportedError, match="neither 'last_hidden_state' nor"):
        with_token_states((tmp_path / "out" / "mine.onnx").read_bytes())
    model = onnx.load(tmp_path / "out" / "mine.onnx", load_external_data=False)
    assert [each.name for each in model.graph.output] == ["logits"]
