"""Choice of the cases that run by default, with the slow tests, and at night."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["but_the_first", "nightly"]


def but_the_first(cases: Iterable[Any], slow: int | None = None) -> list[Any]:
    """Return parameters of a test of which all but the first are slow ones.

    Args:
        cases: The parameters, the most telling ones first.
        slow: How many of the others are slow ones; the rest runs at night. None: all.
    """
    first, *others = cases
    marks = [pytest.mark.slow if slow is None or at < slow else pytest.mark.nightly
             for at in range(len(others))]  # fmt: skip
    return [first, *map(_marked, others, marks)]


def nightly(cases: Iterable[Any], but: int) -> list[Any]:
    """Return parameters of a test that run at night, but for the first so many."""
    cases = list(cases)
    return [*cases[:but], *(_marked(each, pytest.mark.nightly) for each in cases[but:])]


def _marked(case: Any, mark: pytest.MarkDecorator) -> Any:
    if isinstance(case, type(pytest.param())):
        return pytest.param(*case.values, marks=[*case.marks, mark], id=case.id)
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=mark)
