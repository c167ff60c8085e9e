"""Which of many cases run by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["but_the_first"]


def but_the_first(cases: Iterable[Any]) -> list[Any]:
    """Return parameters of a test of which all but the first are slow ones."""
    first, *others = cases
    return [first, *(_slow(each) for each in others)]


def _slow(case: Any) -> Any:
    if isinstance(case, type(pytest.param())):
        return pytest.param(*case.values, marks=[*case.marks, pytest.mark.slow], id=case.id)
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
