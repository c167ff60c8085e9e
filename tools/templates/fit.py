"""Formulas for the numbers of a graph, found from graphs of several sizes."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import by_name
from lora_export.graph.templates.formulas import (
    FLOATS,
    NotExactError,
    evaluate,
    evaluate_float,
)
from lora_export.graph.templates.instantiate import signs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

__all__ = ["NoFormulaError", "fit_attributes", "fit_float", "fit_integer", "fit_table"]

_TIMES: Final = (2, 3, 4, 6, 8)
_PLUS: Final = (1, 2, 3, 4)


class NoFormulaError(Exception):
    """A number follows from none of the sizes."""


def _integer_formulas(names: Sequence[str]) -> Iterator[str]:
    """Yield formulas over sizes, the simple ones first."""
    yield from names
    for name in names:
        yield from (f"{k}*{name}" for k in _TIMES)
        yield from (f"{name}/{k}" for k in (2, 4))
        yield from (f"{name}{sign}{k}" for k in _PLUS for sign in "+-")
    for a, b in itertools.combinations_with_replacement(names, 2):
        yield f"{a}*{b}"
        yield from (f"{k}*{a}*{b}" for k in (2, 3, 4))
    for a, b in itertools.permutations(names, 2):
        yield f"{a}/{b}"
        yield from (f"{a}/{b}/{k}" for k in (2, 4))
    for a, b, c in itertools.permutations(names, 3):
        if a < b:
            yield f"{a}*{b}/{c}"
            yield f"{a}*{c}+{b}*{c}"
            yield f"{a}*{c}+2*{b}*{c}"
            yield f"{b}*{c}+2*{a}*{c}"
    yield from (f"{name}*{name}+1" for name in names)


def fit_integer(values: Sequence[int], sizes: Sequence[Mapping[str, int | float]]) -> str:
    """Return the first formula that is each of `values` for its sizes.

    Raises:
        NoFormulaError: None is.
    """
    for formula in _integer_formulas(_varying(sizes, int)):
        if all(_value(evaluate, formula, e) == v for e, v in zip(sizes, values, strict=True)):
            return formula
    msg = f"{list(values)}"
    raise NoFormulaError(msg)


def _value(
    function: Callable[[str, Mapping[str, int | float]], float],
    formula: str,
    sizes: Mapping[str, int | float],
) -> float:
    """Return what `formula` is for `sizes`; no number where it is none."""
    try:
        return function(formula, sizes)
    except NotExactError:
        return math.nan


def _varying(sizes: Sequence[Mapping[str, int | float]], kind: type) -> list[str]:
    """Return the sizes that differ between probes; nothing of a layer depends on the depth."""
    return [
        name
        for name, value in sizes[0].items()
        if isinstance(value, kind) and name != "layers" and len({e[name] for e in sizes}) > 1
    ]


def fit_float(
    values: Sequence[float], sizes: Sequence[Mapping[str, int | float]], dtype: Any
) -> str:
    """Return the first formula that is each of `values`, in `dtype`, for its sizes.

    Raises:
        NoFormulaError: None is.
    """
    ints = _varying(sizes, int)
    of = [*ints, *(f"{a}/{b}" for a, b in itertools.permutations(ints, 2))]
    of += [f"3*{a}/{b}" for a, b in itertools.permutations(ints, 2)]
    floats = _varying(sizes, float)
    for formula in (*floats, *(f"{function}({each})" for function in FLOATS for each in of)):
        if all(
            np.asarray(_value(evaluate_float, formula, each)).astype(dtype).item() == value
            for each, value in zip(sizes, values, strict=True)
        ):
            return formula
    msg = f"{list(values)}"
    raise NoFormulaError(msg)


def fit_attributes(
    attributes: Mapping[str, Sequence[float]],
    sizes: Sequence[Mapping[str, int | float]],
    dtype: str,
) -> tuple[dict[str, str], list[str]]:
    """Return formulas for attributes by place, and the places of those rounded to `dtype` first.

    Raises:
        NoFormulaError: No formula is right for one of them.
    """
    found: dict[str, str] = {}
    are_rounded: list[str] = []
    numpy = by_name(dtype).numpy
    for place, values in attributes.items():
        own = all(value == np.float32(value).astype(numpy).item() for value in values)
        found[place] = fit_float(values, sizes, numpy if own else np.float32)
        are_rounded += [place] if own else []
    return found, are_rounded


def fit_table(
    tables: Sequence[npt.NDArray[Any]],
    sizes: Sequence[Mapping[str, int | float]],
    frequencies: Sequence[npt.NDArray[Any] | None],
) -> dict[str, Any]:
    """Return the kind and shape of a table that is one for all sizes.

    Raises:
        NoFormulaError: It is none that can be made again bit by bit.
    """
    for kind, made in (
        ("arange", [np.arange(table.size) for table in tables]),
        ("zeros", [np.zeros(table.size) for table in tables]),
        ("signs", [signs(table.size) for table in tables]),
        ("frequencies", frequencies),
    ):
        if all(
            m is not None and np.array_equal(m.astype(table.dtype), table.ravel())
            for m, table in zip(made, tables, strict=True)
        ):
            shape = [
                str(axis[0]) if len(set(axis)) == 1 else fit_integer(axis, sizes)
                for axis in zip(*(table.shape for table in tables), strict=True)
            ]
            return {"kind": kind, "shape": shape}
    msg = f"table {[table.shape for table in tables]}"
    raise NoFormulaError(msg)
