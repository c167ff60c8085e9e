"""Rotary frequencies that depend on the length of the text, against torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lora_export.ondevice.judge.decoding import run_in_pieces, spans, without_cache
from lora_export.runtime.text_generation import Sampling, generate
from lora_export.verification.inputs.random_inputs import make_cases
from lora_export.weights.positions import long_rope_threshold
from tests.graph.trace.test_static_cache import decoder_of, greedy
from tests.graph.traced import Graph, twin

LENGTH = 12
SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LONG = transformers.Phi3Config(
    **SMALL, max_position_embeddings=64, original_max_position_embeddings=LENGTH,
    rope_scaling={
        "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [9.0, 3.0, 4.0, 5.0],
    },
)  # fmt: skip
DYNAMIC = transformers.LlamaConfig(
    **SMALL, max_position_embeddings=LENGTH, rope_scaling={"type": "dynamic", "factor": 4.0}
)


@pytest.mark.parametrize("opset", [20, 24])
@pytest.mark.parametrize("config", [LONG, DYNAMIC], ids=["longrope", "dynamic"])
def test_frequencies_follow_the_length_of_the_text(config: Any, opset: int) -> None:
    graph = Graph(config, twin(config), opset=opset)
    shapes = ((2, LENGTH), (3, LENGTH + 9), (1, 1))
    table = {**config.to_dict(), "max_position_embeddings": 64}
    for case in make_cases(table, graph.signature, seed=0, left_padding=True, shapes=shapes):
        model = twin(config)  # a fresh one: torch's remembers the longest text
        text = {name: torch.tensor(v) for name, v in case.feeds.items() if "past" not in name}
        with torch.inference_mode():
            expected = model(**text, use_cache=False).logits.numpy()[case.mask]
        found = [graph.run(case.feeds)["logits"]]
        if config is LONG or case.mask.shape[1] <= LENGTH:  # NTK changes with every further token
            found.append(run_in_pieces(graph, case.feeds, "logits"))
        for actual in found:
            error = np.linalg.norm(actual[case.mask] - expected) / np.linalg.norm(expected)
            assert error < 2e-6


def test_a_text_that_outgrows_its_frequencies_is_computed_again() -> None:
    graph, model = Graph(LONG, twin(LONG)), twin(LONG)
    prompts = [[5, 9, 7, 3, 11, 8, 6, 4], [8, 12]]
    for config, agrees in ((LONG.to_dict(), True), ({}, False)):
        found = generate(
            decoder_of(graph), prompts, max_new_tokens=12, sampling=Sampling(), stop=(),
            padding=0, switch=long_rope_threshold(config),
        )  # fmt: skip
        tokens = np.array(list(found)).T.tolist()
        assert (tokens[0] == greedy(model, prompts[0], 12)) == agrees


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (
            {"model_type": "phi3", "rope_scaling": {"type": "longrope"},
             "original_max_position_embeddings": 2048},
            2048,
        ),
        ({"model_type": "phi3", "rope_scaling": {"type": "su"}}, 4096),
        (LONG.to_dict(), LENGTH),
        (DYNAMIC.to_dict(), None),
        ({"rope_scaling": None}, None),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, None),
        (
            {"rope_parameters": {
                "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 9},
                "sliding_attention": {"rope_type": "default"}}},
            9,
        ),
        ({"text_config": {"rope_scaling": {"type": "longrope"}, "max_position_embeddings": 7}}, 7),
        ({}, None),
    ],
)  # fmt: skip
def test_long_rope_threshold_is_read_from_old_and_new_configs(config: Any, length: Any) -> None:
    assert long_rope_threshold(config) == length


LENGTH_KEY = "original_max_position_embeddings"
ROPE = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_parameters": {"rope_type": "longrope", **ROPE}},
        {"rope_parameters": {"rope_type": "longrope", LENGTH_KEY: 8, **ROPE}},
        {"rope_scaling": {"type": "longrope", **ROPE}, LENGTH_KEY: 16},
        {"rope_parameters": {"rope_type": "longrope", LENGTH_KEY: 8, **ROPE}, LENGTH_KEY: 16},
    ],
)
@pytest.mark.parametrize("model_type", ["phi3", "llama", "phimoe"])
def test_long_rope_threshold_is_that_of_transformers(model_type: str, settings: Any) -> None:
    rope = settings.get("rope_parameters") or settings["rope_scaling"]
    if model_type == "phimoe":  # which demands these
        rope = {LENGTH_KEY: 10, **rope, "short_mscale": 1.0, "long_mscale": 1.0}
        settings = {"rope_parameters": rope}
    raw = {"model_type": model_type, **SMALL, "max_position_embeddings": 64, **settings}
    known = transformers.AutoConfig.for_model(**copy.deepcopy(raw)).rope_parameters
    assert long_rope_threshold(raw) == known[LENGTH_KEY]


@pytest.mark.parametrize("length", range(1, 18))
def test_pieces_never_continue_a_cache_of_short_frequencies(length: int) -> None:
    """Every text around the switch, cut into pieces: the logits are those of the whole text."""
    pieces = spans(length, LENGTH)
    assert [start for start, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
    assert pieces[-1][1] == length
    assert len({end > LENGTH for _, end in pieces}) == 1


@pytest.mark.parametrize("choices", [{}, {"cache_length": 24}], ids=["growing", "static"])
def test_text_across_the_switch_is_the_reference_s_in_pieces(choices: dict[str, Any]) -> None:
    graph, model = Graph(LONG, twin(LONG), **choices), twin(LONG)
    shapes = tuple((2, LENGTH + more) for more in (-1, 0, 1, 2, 3))
    table = {**LONG.to_dict(), "max_position_embeddings": 64}
    for case in make_cases(table, graph.signature, seed=0, left_padding=True, shapes=shapes):
        text = {name: torch.tensor(v) for name, v in without_cache(case.feeds).items()}
        with torch.inference_mode():
            expected = model(**text, use_cache=False).logits.numpy()[case.mask]
        found = run_in_pieces(graph, case.feeds, "logits", switch=long_rope_threshold(table))
        error = np.linalg.norm(found[case.mask] - expected) / np.linalg.norm(expected)
        assert error < 2e-6
