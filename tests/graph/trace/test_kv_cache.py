"""Decoders with a cache: prefill and steps in ONNX Runtime against torch at once, without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lora_export.core.errors import UnsupportedError
from lora_export.graph.spec import tasks
from lora_export.graph.trace.trace import trace
from lora_export.ondevice.judge.decoding import run_in_pieces
from lora_export.verification.inputs.random_inputs import make_cases
from tests.graph.traced import Graph, twin
from tests.helpers.slow import but_the_first

TASK = tasks.by_name("text-generation")
SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
    "num_hidden_layers": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}
MIXED = ["sliding_attention", "full_attention"]
CONFIGS = {
    "bloom": transformers.BloomConfig(
        vocab_size=60, hidden_size=16, n_layer=2, n_head=2, pad_token_id=0
    ),
    "gemma3": transformers.Gemma3TextConfig(**GROUPED, sliding_window=4, layer_types=MIXED),
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=4),
}


@pytest.mark.parametrize("kind", but_the_first(CONFIGS))
def test_prefill_and_steps_are_what_torch_computes_at_once(kind: str) -> None:
    config = CONFIGS[kind]
    model = twin(config)
    graph = Graph(config, model)
    shapes = ((1, 12), (3, 9), (2, 1))
    for case in make_cases(
        config.to_dict(), graph.signature, seed=0, left_padding=True, shapes=shapes
    ):
        text = {name: torch.tensor(v) for name, v in case.feeds.items() if "past" not in name}
        with torch.inference_mode():
            expected = model(**text, use_cache=False).logits.numpy()[case.mask]
        for actual in (
            graph.run(case.feeds)["logits"],
            run_in_pieces(graph, case.feeds, "logits"),
        ):
            error = np.linalg.norm(actual[case.mask] - expected) / np.linalg.norm(expected)
            assert error < 2e-6


def test_last_logits_only() -> None:
    config = transformers.LlamaConfig(**GROUPED)
    model = twin(config)
    whole, last = Graph(config, model), Graph(config, model, logits="last")
    assert last.signature.outputs[0].axes == ("batch", 1)
    (case,) = make_cases(
        config.to_dict(), last.signature, seed=0, left_padding=True, shapes=((2, 7),)
    )
    np.testing.assert_allclose(
        last.run(case.feeds)["logits"], whole.run(case.feeds)["logits"][:, -1:], atol=1e-6
    )


def test_model_that_keeps_something_else_is_refused() -> None:
    config = transformers.MambaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4
    )
    with pytest.raises(UnsupportedError, match="keeps no keys and values") as caught:
        trace(config.to_dict(), TASK, "float32", 18)
    assert "--no-cache" in str(caught.value)
