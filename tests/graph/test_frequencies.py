"""Rotary frequencies that depend on the length of the text, against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lora_export.device.decoding import run_in_pieces
from lora_export.runtime.generate import Sampling, generate
from lora_export.verify.inputs import make_cases
from lora_export.weights.positions import switching_length
from tests.graph.test_static_cache import decoder_of, greedy
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
            padding=0, switch=switching_length(config),
        )  # fmt: skip
        tokens = np.array(list(found)).T.tolist()
        assert (tokens[0] == greedy(model, prompts[0], 12)) == agrees


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}, 4096),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096}, 4096),
        (LONG.to_dict(), LENGTH),
        (DYNAMIC.to_dict(), None),
        ({"rope_scaling": None}, None),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, None),
        ({}, None),
    ],
)
def test_switching_length_is_read_from_old_and_new_configs(config: Any, length: Any) -> None:
    assert switching_length(config) == length
