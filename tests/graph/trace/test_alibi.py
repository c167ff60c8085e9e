"""Distance biases, against torch's own attention: the one that users get."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers

from lora_export.ondevice.judge.decoding import run_in_pieces
from lora_export.verification.inputs.random_inputs import make_cases
from tests.graph.traced import Graph, twin

SMALL = {"vocab_size": 60, "hidden_size": 24, "pad_token_id": 0, "bos_token_id": 1}
CONFIGS = {
    "falcon": transformers.FalconConfig(
        **SMALL, num_hidden_layers=2, num_attention_heads=3, alibi=True, multi_query=False
    ),
    "falcon, layer after layer": transformers.FalconConfig(
        **SMALL, num_hidden_layers=2, num_attention_heads=2, alibi=True, multi_query=False,
        parallel_attn=False, bias=True,
    ),
    "bloom": transformers.BloomConfig(**SMALL, n_layer=2, n_head=3),
}  # fmt: skip


@pytest.mark.parametrize("opset", [20, 24])
@pytest.mark.parametrize("kind", CONFIGS)
def test_biases_count_once(kind: str, opset: int) -> None:
    config = CONFIGS[kind]
    eager = twin(copy.deepcopy(config))  # a config remembers the attention that was asked for
    graph = Graph(config, eager, opset=opset)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    model.load_state_dict(eager.state_dict())
    for case in make_cases(
        config.to_dict(), graph.signature, seed=0, left_padding=True, shapes=((1, 12), (3, 30))
    ):
        text = {name: torch.tensor(v) for name, v in case.feeds.items() if "past" not in name}
        with torch.inference_mode():
            expected = model(**text).logits.numpy()[case.mask]
        actual = run_in_pieces(graph, case.feeds, "logits")[case.mask]
        assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 2e-6
