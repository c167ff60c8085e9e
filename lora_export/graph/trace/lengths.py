"""Models whose trace holds for some lengths only: found by guards and a second trace.

`torch.export` runs a model on one example. Wherever the code looks at a size (an ``if``, the number
of chunks in a loop, the padding to a multiple), it follows the path of the example and records a
guard: an expression over the symbolic sizes that is true there. A graph is right for every length
if every guard is, so each is evaluated at other sizes:

    Eq(s27, s94)                  true: the two are one axis
    Eq((s27 + 63)//64, 1)         false from 65 on: the trace may hold one chunk of a loop
    s27 <= 512                    false from 513 on; not a fault where the model has 512 positions

Where one is false the model is traced once more, at that size. The same program means that the
guard decided nothing that is part of it (how a tensor lies in memory); another program is refused.
Sizes 0 and 1 have no guards: torch.export assumes that a dynamic size is neither.
"""

from __future__ import annotations

import itertools
import linecache
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import sympy
import torch

from lora_export.core.errors import FixedLengthError
from lora_export.core.torch_private import shape_environment, source_frame, symbol_of, tree_map
from lora_export.weights.positions import POSITION_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch.export import ExportedProgram

    from lora_export.graph.spec.signature import Signature

__all__ = ["fixed_axis", "fixed_length", "refuse_fixed_lengths"]

_SIZES: Final = tuple(
    sorted(
        {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 24, 47, 100, 300, 1000, 3000, 6000, 30_000}
        | {2**power + step for power in range(4, 16) for step in (-1, 0, 1)}
    )
)
"""The sizes that an axis is tried with: small ones, and both sides of each power of two."""

_OTHERS: Final = {"batch": (2,), "past_sequence": (2, 1000)}
"""The sizes of the other axes meanwhile; one that is not here has 7."""
_OTHER: Final = (7,)
_TEXT_AXES: Final = ("sequence", "past_sequence", "encoder_sequence")

_OFFSET: Final = 4
"""How many rows a table of positions may have besides: BART's and RoBERTa's have two."""
_LINE_LIMIT: Final = 80
_SPECIALIZED: Final = re.compile(r"L\['inputs'\]\['([^']+)'\]\.size\(\)\[(\d+)\] as dynamic but")


def fixed_length(model: str, reason: str) -> FixedLengthError:
    """Return the error that says that `model` cannot be traced for inputs of any size, and why."""
    return FixedLengthError(
        f"{model} cannot be traced for inputs of any size: {reason}",
        hint="A graph would be wrong, or fail, at other sizes. Export one yourself for the size "
        "that you need, and give it with --graph.",
    )


def refuse_fixed_lengths(
    program: ExportedProgram,
    signature: Signature,
    model: Any,
    trace_at: Callable[[Mapping[str, int]], ExportedProgram],
) -> None:
    """Refuse a program that is right for some sizes of the inputs' axes only.

    Args:
        program: What ``torch.export`` returned for `model`.
        signature: The interface that it was traced with, axes named.
        model: The model; its config says how many positions it has.
        trace_at: Traces the model again, with the given sizes of axes.

    Raises:
        FixedLengthError: An axis is bounded, or tied to another, by the model's code.
    """
    proved: set[tuple[str, int]] = set()
    for axis, sizes, guard in _failing_guards(program, signature, model):
        if (axis, sizes[axis]) in proved:
            continue
        proved.add((axis, sizes[axis]))
        try:
            same = _steps(trace_at(sizes)) == _steps(program)
        except Exception:  # noqa: BLE001  (whatever torch or the model raise: it cannot be traced there)
            same = False
        if not same:
            raise fixed_length(
                type(model).__name__,
                f"with {axis} {sizes[axis]} its code takes another path than with the size that "
                f"is traced{_place(guard)}",
            )


def _failing_guards(
    program: ExportedProgram, signature: Signature, model: Any
) -> Iterator[tuple[str, dict[str, int], Any]]:
    """Yield guards that do not hold everywhere: an axis, the smallest sizes, and the guard."""
    shapes = _input_shapes(program, len(signature.inputs))
    dynamic = [size for shape in shapes for size in shape if isinstance(size, torch.SymInt)]
    if not dynamic:
        return
    environment = shape_environment(dynamic[0])
    axis_of = _axes_of_symbols(shapes, signature, type(model).__name__)
    guards = {
        environment.replace(guard.expr).xreplace(axis_of): guard for guard in environment.guards
    }
    limits = _numbers_of_positions(model.config)
    for condition, guard in guards.items():
        if not condition.free_symbols or _is_about_one(condition):
            continue
        for axis in sorted(condition.free_symbols & set(axis_of.values()), key=str):
            tried = list(_tried(axis, condition.free_symbols))
            failing = [sizes for sizes in tried if condition.xreplace(sizes) == False]  # noqa: E712  (sympy's own false)
            if failing and not _ends_with_positions(tried, failing, limits):
                first = min(failing, key=lambda sizes: sizes[axis])
                yield str(axis), {str(each): int(size) for each, size in first.items()}, guard


def _steps(program: ExportedProgram) -> list[tuple[Any, ...]]:
    """Return the operators of a program with their arguments, nodes as numbers; dead ones left out.

    Two traces of one model are the same program if their steps are equal.
    """
    program.graph.eliminate_dead_code()
    number = {node: index for index, node in enumerate(program.graph.nodes)}

    def plain(value: Any) -> Any:
        return ("node", number[value]) if isinstance(value, torch.fx.Node) else repr(value)

    return [
        (node.op, str(node.target), tree_map(plain, node.args), tree_map(plain, node.kwargs))
        if node.op == "call_function"
        else (node.op, tree_map(plain, node.args))
        for node in program.graph.nodes
    ]


def fixed_axis(error: BaseException, signature: Signature) -> str | None:
    """Return the axis whose size the model's code turns into a number, by torch.export's error.

    None where `error` says something else.
    """
    for name, at in _SPECIALIZED.findall(str(error)):
        axes = {each.name: each.axes for each in signature.inputs}.get(name, ())
        if int(at) < len(axes):
            return str(axes[int(at)])
    return None


def _input_shapes(program: ExportedProgram, count: int) -> list[Sequence[Any]]:
    """Return the shapes of the program's last `count` placeholders, its inputs."""
    found = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    return [value.shape for value in found[-count:]]


def _axes_of_symbols(
    shapes: Sequence[Sequence[Any]], signature: Signature, model: str
) -> dict[Any, Any]:
    """Return for each symbol of a size one that is named after its axis, the same for equal axes.

    Raises:
        FixedLengthError: One symbol stands for two axes, which then have to be equal.
    """
    axis_of: dict[Any, Any] = {}
    for given, shape in zip(signature.inputs, shapes, strict=True):
        for at in given.dynamic:
            symbol = symbol_of(shape[at])
            if symbol is None or not symbol.is_Symbol:
                continue  # a sum of other axes, such as past and new positions
            axis = sympy.Symbol(str(given.axes[at]), integer=True, positive=True)
            if axis_of.setdefault(symbol, axis) != axis:
                raise fixed_length(model, f"{axis_of[symbol]} and {axis} have to be equal")
    return axis_of


def _is_about_one(condition: Any) -> bool:
    """Return whether a guard only says that a size is not 0 or 1.

    torch asks for that wherever a tensor may be empty, contiguous or broadcast, and assumes it of
    every axis of an input; the path taken for larger sizes serves these as well.
    """
    if isinstance(condition, sympy.Ne):
        return any(side in {0, 1} for side in condition.args)
    is_order = isinstance(condition, (sympy.Gt, sympy.Ge, sympy.Lt, sympy.Le))
    return is_order and condition.lts in {0, 1, 2}


def _tried(axis: Any, read: Iterable[Any]) -> Iterator[dict[Any, Any]]:
    """Yield sizes for the axes that a guard reads, many of them for `axis`."""
    others = [other for other in read if other != axis]
    for sizes in itertools.product(*(_OTHERS.get(str(other), _OTHER) for other in others)):
        rest = {other: sympy.Integer(size) for other, size in zip(others, sizes, strict=True)}
        for size in _SIZES:
            yield {**rest, axis: sympy.Integer(size)}


def _ends_with_positions(
    tried: Iterable[Mapping[Any, Any]], failing: Sequence[Mapping[Any, Any]], limits: Iterable[int]
) -> bool:
    """Return whether a guard fails just where texts are longer than the model has positions."""

    def length(sizes: Mapping[Any, Any]) -> Any:
        return sum(size for axis, size in sizes.items() if str(axis) in _TEXT_AXES)

    return any(
        all(length(sizes) > limit for sizes in failing)
        and all(sizes in failing for sizes in tried if length(sizes) > limit + _OFFSET)
        for limit in limits
    )


def _numbers_of_positions(config: Any) -> set[int]:
    """Return how many positions a config gives its model, and the models in it."""
    configs = [config, *(each for each in vars(config).values() if hasattr(each, "model_type"))]
    values = (getattr(each, name, None) for each in configs for name in POSITION_KEYS)
    return {value for value in values if isinstance(value, int)}


def _place(guard: Any) -> str:
    """Return where the model's code made a guard: file, line and text; empty if not known."""
    frame = source_frame(guard)
    if frame is None or "torch" in PurePath(frame.filename).parts:
        return ""
    line = linecache.getline(frame.filename, frame.lineno).strip()[:_LINE_LIMIT]
    return f" ({PurePath(frame.filename).name}, line {frame.lineno}: {line!r})"
