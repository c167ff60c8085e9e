"""Initializers of a foreign graph matched to the tensors of a checkpoint.

    1. By name: as it is, with and without the bare model's name, or wrapped deeper. The values have
       to be equal too, as they are or transposed, after a cast to the graph's dtype.
    2. By content: equal to exactly one tensor of the checkpoint. A tensor of one repeated value
       (the zeros and ones of a new model) proves nothing by its content.
    3. By content and place: equal to several, one of which the surroundings name.

What is equal to several tensors and named by nothing is ambiguous: it stays as it is, and none of
those tensors may be changed. What no rule finds is unmatched, and stays as it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from lora_export.adapters.fit import UNKNOWN_MODULE
from lora_export.core.declarations import tied_names
from lora_export.core.parameters import COPY, Parameter
from lora_export.graph.foreign.compare import is_uniform, probe, probe_key, same_stored
from lora_export.graph.foreign.readers import module_type_of, parameter_names, readings_of
from lora_export.weights.fingerprint import TIED_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.core.dtypes import DType
    from lora_export.core.tensors import Tensor
    from lora_export.graph.foreign.open_graph import ForeignGraph
    from lora_export.graph.foreign.readers import Reading

__all__ = ["Match", "Matching", "match_graph"]

_MATRIX: Final = 2
_INDICES: Final = frozenset({"bool", "int64"})
"""Dtypes of tables and masks, which are not weights."""

_SHORTEST: Final = 2
"""Components that a name keeps when it is compared without those before them."""


@dataclass(frozen=True)
class Match:
    """An initializer, and the parameter that it holds.

    Attributes:
        initializer: Its name in the graph.
        parameter: The parameter; its name is the checkpoint's, or that of a tied output.
        source: The checkpoint's tensor; None for a head that the checkpoint lacks.
        how: What it was found by.
    """

    initializer: str
    parameter: Parameter
    source: Tensor | None = field(repr=False)
    how: Literal["name", "content", "absent"]


@dataclass(frozen=True)
class Matching:
    """The result of matching a graph's initializers to a checkpoint.

    Attributes:
        matches: One entry per initializer that holds a parameter; several may hold the same.
        ambiguous: Initializers that are equal to several tensors, and the names of those.
        unmatched: Initializers that hold no tensor of the checkpoint, tables of indices aside.
        contradicted: Initializers that are named like a tensor and hold other values.
        absent: Tensors of the checkpoint that no initializer was matched to.
    """

    matches: tuple[Match, ...]
    ambiguous: Mapping[str, tuple[str, ...]]
    unmatched: tuple[str, ...]
    contradicted: tuple[str, ...]
    absent: tuple[str, ...]


def match_graph(graph: ForeignGraph, tensors: Mapping[str, Tensor], prefix: str) -> Matching:
    """Match the initializers of `graph` to `tensors`, the checkpoint's.

    Args:
        graph: The graph.
        tensors: The checkpoint's tensors by name.
        prefix: ``base_model_prefix`` with its dot, or ``""``.

    Raises:
        InputError: A file ends too early.
    """
    known = {name: each for name, each in tensors.items() if each.dtype.floating}
    held = {name: each for name, each in graph.tensors.items() if each.dtype.floating}
    readings = readings_of(graph.model.graph, list(held))
    names = _Names(known, prefix)
    contents = _Contents(known)
    matches: list[Match] = []
    ambiguous: dict[str, tuple[str, ...]] = {}
    unmatched: list[str] = []
    contradicted: list[str] = []
    for initializer, value in held.items():
        around = readings[initializer]
        found, other_values = _by_name(initializer, value, names, known)
        how: Literal["name", "content"] = "name"
        if other_values:
            contradicted.append(initializer)
            continue
        if found is None:
            how = "content"
            hints = (initializer, *parameter_names(around))
            equal = list(contents.equal_to(value))
            found = _by_content(value, equal, hints, names)
            if found is None and equal:
                ambiguous[initializer] = tuple(sorted({name for name, _ in equal}))
                continue
        if found is not None:
            name, source, transposed = found
            parameter = _parameter(name, known[source].shape, value, around, transposed=transposed)
            matches.append(Match(initializer, parameter, known[source], how))
        elif (head := _head(initializer, value, around, names)) is not None:
            matches.append(Match(initializer, head, None, "absent"))
        else:
            unmatched.append(initializer)
    taken = {match.source.name for match in matches if match.source is not None}
    absent = tuple(sorted(name for name, each in known.items() if each.name not in taken))
    others = [
        name
        for name, each in graph.tensors.items()
        if name not in held and each.dtype.name not in _INDICES
    ]
    return Matching(
        tuple(_with_ties(matches, ambiguous, {name: known[name] for name in absent}, readings)),
        ambiguous,
        (*unmatched, *others),
        tuple(contradicted),
        absent,
    )


_Found = tuple[str, str, bool]
"""The parameter's name, the tensor's name in the checkpoint, whether it is stored transposed."""


class _Names:
    """Names of the checkpoint, found under the names that others give them."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self.tops = {self._top(name) for name in tensors}
        endings: Counter[str] = Counter()
        self._by_ending: dict[str, str] = {}
        for name in tensors:
            for ending in _endings(name):
                endings[ending] += 1
                self._by_ending[ending] = name
        self._once = {ending for ending, count in endings.items() if count == 1}

    def same(self, name: str) -> list[str]:
        """Return the tensors that `name` means, with or without the bare model's name."""
        options = (name, name.removeprefix(self._prefix), self._prefix + name)
        return [each for each in dict.fromkeys(options) if each in self._tensors]

    def alike(self, name: str) -> list[str]:
        """Return the tensors whose name ends as `name` does, one of the two being longer."""
        found = [ending for ending in _endings(name) if ending in self._tensors]
        if name in self._once:
            found.append(self._by_ending[name])
        return [*self.same(name), *found]

    def is_of_absent_module(self, name: str) -> bool:
        """Whether `name` is a weight or bias of a top-level module that the checkpoint lacks."""
        bare = name.removeprefix(self._prefix)
        return bare.endswith((".weight", ".bias")) and self._top(name) not in self.tops

    def is_absent_tie(self, name: str) -> bool:
        """Whether `name` is an output or copied embedding that the checkpoint does not store."""
        return name.endswith(TIED_NAMES) and not self.same(name)

    def _top(self, name: str) -> str:
        return name.removeprefix(self._prefix).partition(".")[0]


def _endings(name: str) -> Iterator[str]:
    """Yield what remains of a name without its first components."""
    parts = name.split(".")
    for start in range(1, len(parts) - _SHORTEST + 1):
        yield ".".join(parts[start:])


class _Contents:
    """The checkpoint's tensors by what they hold."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, each in tensors.items():
            self._by_shape[each.shape].append(name)
        self._probes: dict[tuple[object, ...], dict[bytes, list[str]]] = {}

    def equal_to(self, value: Tensor) -> Iterator[tuple[str, bool]]:
        """Yield the tensors that `value` holds, and whether transposed; each once."""
        wanted = probe(value, value.dtype)
        layouts = [(value.shape, False)]
        if len(value.shape) == _MATRIX:
            layouts.append((value.shape[::-1], True))
        seen: set[str] = set()
        for shape, transposed in layouts:
            probes = self._probed(shape, value.dtype, transposed=transposed)
            names = probes.get(probe_key(wanted), ())
            for name in names:
                if name not in seen and same_stored(
                    self._tensors[name], value, transposed=transposed
                ):
                    seen.add(name)
                    yield name, transposed

    def _probed(
        self, shape: tuple[int, ...], dtype: DType, *, transposed: bool
    ) -> dict[bytes, list[str]]:
        """Return the tensors of a shape by their probes."""
        key = (shape, dtype.name, transposed)
        if key not in self._probes:
            table: dict[bytes, list[str]] = defaultdict(list)
            for name in self._by_shape.get(shape, ()):
                found = probe(self._tensors[name], dtype, transposed=transposed)
                table[probe_key(found)].append(name)
            self._probes[key] = table
        return self._probes[key]


def _by_name(
    initializer: str, value: Tensor, names: _Names, tensors: Mapping[str, Tensor]
) -> tuple[_Found | None, bool]:
    """Return the tensor that the name finds, and whether its values contradict the name."""
    contradicted = False
    same = names.same(initializer)
    for name in dict.fromkeys((*same, *names.alike(initializer))):
        source = tensors[name]
        layouts = [layout for layout in (False, True) if _fits(source, value, transposed=layout)]
        for transposed in layouts:
            if same_stored(source, value, transposed=transposed):
                return (name, name, transposed), False
        contradicted |= bool(layouts) and name in same
    return None, contradicted


def _fits(source: Tensor, value: Tensor, *, transposed: bool) -> bool:
    if transposed:
        return len(source.shape) == _MATRIX and source.shape[::-1] == value.shape
    return source.shape == value.shape


def _by_content(
    value: Tensor, equal: Sequence[tuple[str, bool]], hints: Sequence[str], names: _Names
) -> _Found | None:
    """Return the one tensor that content, and where that is not enough the surroundings, mean."""
    if not equal:
        return None
    layout = dict(equal)
    first = next(iter(layout))
    if tied := next((hint for hint in hints if names.is_absent_tie(hint)), None):
        return tied, first, layout[first]
    meant = {name for hint in hints for name in names.alike(hint) if name in layout}
    if len(meant) == 1:
        (name,) = meant
        return name, name, layout[name]
    if len(layout) == 1 and not is_uniform(value):
        return first, first, layout[first]
    return None


def _parameter(
    name: str,
    shape: tuple[int, ...],
    value: Tensor,
    readings: Sequence[Reading],
    *,
    transposed: bool,
) -> Parameter:
    kind = module_type_of(readings, shape, transposed=transposed) or UNKNOWN_MODULE
    return Parameter(name, shape, value.dtype.name, kind, transposed)


def _head(
    initializer: str, value: Tensor, readings: Sequence[Reading], names: _Names
) -> Parameter | None:
    """Return the parameter of a head that the checkpoint lacks and an adapter may bring.

    By its own name, or by that of the product that it is the right operand of. Heads are Linear:
    one that is read as ``[in, out]`` is stored transposed.
    """
    product = module_type_of(readings, value.shape, transposed=False)
    hints = parameter_names(readings) if product in {"Linear", "Conv1D"} else ()
    for name in (initializer, *hints):
        if names.is_of_absent_module(name):
            transposed = product == "Conv1D"
            shape = value.shape[::-1] if transposed else value.shape
            return _parameter(name, shape, value, readings, transposed=transposed)
    return None


def _with_ties(
    matches: Sequence[Match],
    ambiguous: Mapping[str, Sequence[str]],
    absent: Mapping[str, Tensor],
    readings: Mapping[str, Sequence[Reading]],
) -> Iterator[Match]:
    """Yield the matches with further names for what an adapter cannot change by itself.

    Case 1: one initializer is looked up and multiplied with: input and output embedding.
    Case 2: one initializer is read several times, and the checkpoint has equal tensors that no
    initializer was found for: the exporter stored equal ones once.
    Case 3: an ambiguous initializer may be a copy of it.
    """
    for match in matches:
        around = readings[match.initializer]
        name, source = match.parameter.name, match.source
        ties: list[str] = []
        lookups = [reading for reading in around if reading.is_lookup]
        if lookups and len(lookups) < len(around):
            outputs = parameter_names([each for each in around if not each.is_lookup])
            known = [n for n in outputs if n.endswith(TIED_NAMES) or n in tied_names()]
            tied = [each for each in known if each != name]
            ties.append(tied[0] if tied else f"{name} as an output")
        if source is not None and len(around) > 1:
            ties.extend(
                other
                for other, tensor in absent.items()
                if tensor.shape == source.shape and same_stored(tensor, source, transposed=False)
            )
        ties.extend(other + COPY for other, names in ambiguous.items() if name in names)
        aliases = tuple(dict.fromkeys(ties))
        yield replace(match, parameter=replace(match.parameter, aliases=aliases))
