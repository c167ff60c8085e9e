"""Decoders with a static cache: prefill and steps in ONNX Runtime against torch without a cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.ondevice.judge.decoding import run_in_pieces, without_cache
from lora_export.runtime.ort_decoder import OrtDecoder
from lora_export.runtime.text_generation import Sampling, generate
from lora_export.verification.inputs.random_inputs import make_cases
from tests.graph.traced import Graph, twin

ROOM = 16
SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
    "num_hidden_layers": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip
CONFIGS = {
    "gpt2": transformers.GPT2Config(
        vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0
    ),
    "llama": transformers.LlamaConfig(**SMALL),
    "qwen3": transformers.Qwen3Config(**SMALL),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=4),
    "bloom": transformers.BloomConfig(
        vocab_size=60, hidden_size=16, n_layer=2, n_head=2, pad_token_id=0
    ),
}
WRITTEN_BY = {20: "ScatterND", 24: "TensorScatter"}

OTHERS = (("llama", 24), ("qwen3", 20), ("mistral", 20), ("bloom", 24))


@pytest.fixture(
    scope="module",
    params=[("gpt2", 20), *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)],
    ids=str,
)
def pair(request: pytest.FixtureRequest) -> Any:
    kind, opset = request.param
    model = twin(CONFIGS[kind])
    graph = Graph(CONFIGS[kind], model, opset=opset, cache_length=ROOM)
    assert graph.types.count(WRITTEN_BY[opset]) == 4
    return SimpleNamespace(config=CONFIGS[kind], model=model, graph=graph)


def decoder_of(graph: Graph, in_place: bool | None = None) -> OrtDecoder:
    runner: Any = SimpleNamespace(
        session=graph.session, adapter={}, narrow=frozenset(), complete=lambda feeds: feeds
    )
    return OrtDecoder(runner, in_place=in_place)


def reference(model: Any, feeds: Any) -> np.ndarray:
    text = {name: torch.tensor(value) for name, value in without_cache(feeds).items()}
    with torch.inference_mode():
        return np.asarray(model(**text, use_cache=False).logits.numpy())


def greedy(model: Any, prompt: list[int], steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_shapes_are_those_of_the_buffers(pair: Any) -> None:
    inputs = {each.name: each.axes for each in pair.graph.signature.inputs}
    outputs = {each.name: each.axes for each in pair.graph.signature.outputs}
    assert inputs["attention_mask"] == ("batch", ROOM)
    assert inputs["write_indices"] == ("batch",)
    buffers = {name: axes for name, axes in inputs.items() if name.startswith("past_key_values.")}
    assert len(buffers) == 4
    for name, axes in buffers.items():
        assert axes[2] == ROOM
        assert outputs[name.replace("past_key_values", "present")] == axes


def test_prefill_and_steps_are_what_torch_computes_at_once(pair: Any) -> None:
    shapes = ((1, 12), (3, 9), (2, 1), (2, ROOM))
    for case in make_cases(
        pair.config.to_dict(), pair.graph.signature, seed=0, left_padding=True, shapes=shapes
    ):
        assert np.abs(case.feeds["past_key_values.0.key"]).min() > 0  # what nobody may read
        expected = reference(pair.model, case.feeds)[case.mask]
        for actual in (
            pair.graph.run(case.feeds)["logits"],
            run_in_pieces(pair.graph, case.feeds, "logits"),
        ):
            error = np.linalg.norm(actual[case.mask] - expected) / np.linalg.norm(expected)
            assert error < 2e-6


def test_rows_may_be_written_at_different_places() -> None:
    config = CONFIGS["llama"]
    model = twin(config)
    graph = Graph(config, model, cache_length=ROOM)
    texts = np.random.default_rng(0).integers(1, 60, (2, 7))
    past = np.array([5, 2])
    names = [each.name for each in graph.signature.inputs if each.name.startswith("past")]
    cache = {name: np.zeros((2, 1, ROOM, 8), np.float32) for name in names}

    def step(ids: Any, lengths: Any, written: Any) -> dict[str, np.ndarray]:
        columns = np.arange(ROOM)[None]
        return graph.run({
            "input_ids": ids, "write_indices": np.array(written),
            "attention_mask": (columns < np.array(lengths)[:, None]).astype(np.int64),
            "position_ids": np.array(written)[:, None] + np.arange(ids.shape[1])[None], **cache,
        })  # fmt: skip

    first = step(texts[:, :5], past, [0, 0])  # of the second row, two tokens count
    cache = {name: first[name.replace("past_key_values", "present")] for name in names}
    ids = np.stack([texts[0, 5:], texts[1, 2:4]])
    actual = step(ids, past + 2, past)["logits"]
    for row, end in enumerate(past + 2):
        with torch.inference_mode():
            whole = model(torch.tensor(texts[row : row + 1, :end]), use_cache=False).logits
        np.testing.assert_allclose(actual[row], whole[0, -2:].numpy(), atol=2e-5)


@pytest.mark.parametrize(("in_place", "sets"), [(None, 1), (False, 2)])
def test_decoding_reuses_its_buffers(pair: Any, in_place: bool | None, sets: int) -> None:
    decoder = decoder_of(pair.graph, in_place)
    prompts = [[5, 9, 7, 3, 11], [8, 2]]
    steps = ROOM - 5 + 1  # the last token is not written
    found = generate(
        decoder, prompts, max_new_tokens=steps, sampling=Sampling(), stop=(), padding=0
    )
    decoded, places = [], set()
    for tokens in found:
        decoded.append(tokens)
        places.add(frozenset(value.data_ptr() for value in decoder._cache.values()))
    assert len(places) == sets
    expected = [greedy(pair.model, prompt, steps) for prompt in prompts]
    assert np.array(decoded).T.tolist() == expected


def test_more_than_the_buffers_hold_is_refused(pair: Any) -> None:
    decoder = decoder_of(pair.graph)
    decoder.start(1)
    ids = np.ones((1, ROOM + 1), np.int64)
    feeds = {"input_ids": ids, "attention_mask": ids, "position_ids": ids}
    with pytest.raises(UsageError, match=f"room for {ROOM} positions, not for {ROOM + 1}"):
        decoder.logits(feeds)


def test_model_that_reads_positions_off_its_keys_is_refused() -> None:
    config = transformers.GPTNeoConfig(
        vocab_size=60, hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]], window_size=4,
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="GPTNeoForCausalLM has no static cache") as caught:
        Graph(config, twin(config), cache_length=ROOM)
    assert "--cache-length" in (caught.value.hint or "")
