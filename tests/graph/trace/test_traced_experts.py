"""Experts that all compute, compared with the loop over those that were hit."""

from __future__ import annotations

import pytest
import torch
from transformers import GptOssConfig, MixtralConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from lora_export.graph.trace.traced_experts import every_expert, traceable_experts

EXPERTS = 5
SIZES = {"hidden_size": 8, "intermediate_size": 6, "num_local_experts": EXPERTS}


def experts(kind: str):
    """Random experts: stored ``[out, in]``, or ``[in, out]`` with biases and their own gate."""
    torch.manual_seed(0)
    module = (
        MixtralExperts(MixtralConfig(**SIZES))
        if kind == "mixtral"
        else GptOssExperts(GptOssConfig(**SIZES))
    )
    module.config._experts_implementation = "eager"
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.double()


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss"])
@pytest.mark.parametrize("hit", [[[0, 1]], [[4, 2]], [[0, 3], [3, 1], [0, 2], [1, 3]]], ids=str)
def test_same_as_the_loop_whichever_experts_are_hit(kind: str, hit) -> None:
    module, index = experts(kind), torch.tensor(hit)
    x = torch.randn(len(hit), 8, dtype=torch.float64)
    shares = torch.rand(index.shape, dtype=torch.float64)
    expected = module(x, index, shares)
    with traceable_experts():
        actual = module(x, index, shares)
    assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(module(x, index, shares), expected)  # as before


def test_overflow_of_an_expert_that_was_not_chosen_does_not_show() -> None:
    module, x = experts("mixtral"), torch.randn(3, 8, dtype=torch.float64)
    index, shares = torch.tensor([[0], [1], [0]]), torch.ones(3, 1, dtype=torch.float64)
    expected = every_expert(module, x, index, shares)
    with torch.no_grad():
        module.down_proj[2:] = float("inf")
    assert torch.equal(every_expert(module, x, index, shares), expected)
