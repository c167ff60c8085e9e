"""Guards against overflow in float16: the branch is traced, a test that stays a tensor is not."""

from __future__ import annotations

import pytest
import torch

from lora_export.graph.trace.overflow import AssumeOverflow

LIMIT = torch.finfo(torch.float16).max - 1000


class Finite(torch.nn.Module):
    """Clamp as BART's encoder layers do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + x
        if y.dtype == torch.float16 and not torch.isfinite(y).all():
            y = torch.clamp(y, min=-LIMIT, max=LIMIT)
        return y


class Infinite(torch.nn.Module):
    """Clamp as NLLB-MoE's and Pix2Struct's layers do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + x
        if y.dtype == torch.float16 and torch.isinf(y).any():
            y = torch.clamp(y, min=-LIMIT, max=LIMIT)
        return y


class Chosen(torch.nn.Module):
    """Clamp as T5's layers do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + x
        limit = torch.where(torch.isinf(y).any(), LIMIT, torch.finfo(y.dtype).max)
        return torch.clamp(y, min=-limit, max=limit)


@pytest.mark.parametrize("module", [Finite(), Infinite(), Chosen()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("large", [2.0, 40_000.0])
def test_traced_module_computes_what_it_does_with_and_without_an_overflow(module, large) -> None:
    x = torch.tensor([[1.0, -large, large, 3.0]], dtype=torch.float16)
    with AssumeOverflow():
        program = torch.export.export(module, (torch.ones_like(x),), strict=False)
    assert torch.equal(program.module()(x), module(x))
    assert module(x).isfinite().all()


def test_other_dtypes_are_left_alone() -> None:
    class Check(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if torch.isfinite(x).all() else x * 0

    x = torch.ones(3)
    with AssumeOverflow():
        assert torch.equal(Check()(x), x)
