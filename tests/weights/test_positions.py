"""The number of tokens that a model takes, against transformers' own layer of positions."""

from __future__ import annotations

import pytest
import torch
import transformers

from lora_export.weights.positions import longest_text

_TINY = {
    "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "intermediate_size": 8, "max_position_embeddings": 24, "n_positions": 24, "dim": 8,
    "n_layers": 1, "n_heads": 1, "hidden_dim": 8, "n_embd": 8, "n_layer": 1, "n_head": 1,
}  # fmt: skip


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(
    "model_type", ["bert", "distilbert", "electra", "gpt2", "camembert", "mpnet", "roberta"]
)
def test_the_longest_text_runs_and_no_longer_one(model_type, padding) -> None:
    if model_type == "mpnet" and padding != 1:
        pytest.skip("MPNet's positions begin behind 1, whatever the config says")
    config = transformers.AutoConfig.for_model(model_type, **_TINY, pad_token_id=padding)
    model = transformers.AutoModel.from_config(config).eval()
    longest = longest_text(config.to_dict())
    model(input_ids=torch.full((1, longest), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 7))
