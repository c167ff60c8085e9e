"""Guards of models against float16 overflow, traced as if something had overflowed.

BART and its kin test the output of a layer and clamp it only where something overflowed:

    if x.dtype == torch.float16 and not torch.isfinite(x).all():
        x = torch.clamp(x, -limit, limit)          # limit = 65504 - 1000

A trace cannot branch on values, so the guarded code is traced as if something had overflowed. The
results are equal unless every value is finite and some lie between `limit` and 65504 in size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["AssumeOverflow"]

_TESTS: Final[Mapping[Any, bool]] = {
    torch.isfinite: False,
    torch.Tensor.isfinite: False,
    torch.isinf: True,
    torch.Tensor.isinf: True,
}
"""The tests for overflow, and what they say of an overflowed value."""

_REDUCTIONS: Final = (torch.all, torch.Tensor.all, torch.any, torch.Tensor.any)
_NEGATIONS: Final = (torch.logical_not, torch.Tensor.logical_not, torch.Tensor.__invert__)
_BRANCHES: Final = (torch.Tensor.__bool__, torch.Tensor.item)


class AssumeOverflow(TorchFunctionMode):
    """A mode in which a Python branch on the overflow of float16 values is taken.

    Only branches are decided: a test that stays a tensor (``torch.where(torch.isinf(x).any(), …)``)
    is traced as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answers: dict[int, tuple[torch.Tensor, bool]] = {}
        """By identity, results of tests and what they say; the tensors are kept alive."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        source = args[0] if args else None
        known = self._answers.get(id(source))
        if known is not None and func in _BRANCHES:
            return known[1]
        result = func(*args, **(kwargs or {}))
        if func in _TESTS and isinstance(source, torch.Tensor) and source.dtype == torch.float16:
            self._answers[id(result)] = (result, _TESTS[func])
        elif known is not None and func in _REDUCTIONS:
            self._answers[id(result)] = (result, known[1])
        elif known is not None and func in _NEGATIONS:
            self._answers[id(result)] = (result, not known[1])
        return result
