"""A foreign graph whose initializers are renamed to the parameters of the checkpoint.

Structure, opset and IR version stay as they are. What changes is where values lie: every parameter
becomes external data under its own name, and copies of one parameter become one initializer. Other
large tensors keep their names and values, and lie beside the parameters.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnx

from lora_export.core.errors import InputError, UnsupportedError
from lora_export.core.listing import first_few
from lora_export.core.parameters import COPY
from lora_export.core.reports.graph_report import AmbiguousInitializer, GraphReport, InitializerRow
from lora_export.core.tensors import nbytes
from lora_export.graph.foreign.proto_skeleton import INLINE_BYTES
from lora_export.graph.foreign.rewire import defined_names, fresh_name, rename_values
from lora_export.graph.spec.template import GraphTemplate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.core.tensors import Tensor
    from lora_export.graph.foreign.match import Match, Matching
    from lora_export.graph.foreign.open_graph import ForeignGraph

__all__ = ["Adopted", "adopt", "require_same_base"]

_SHOWN = 5


@dataclass(frozen=True)
class Adopted:
    """A foreign graph as a template.

    Attributes:
        template: The graph, without values.
        sources: The checkpoint's tensor of each parameter that it has.
        kept: Large initializers that are not parameters, with the graph's own values.
        report: What was matched how, and what was not.
    """

    template: GraphTemplate
    sources: Mapping[str, Tensor] = field(repr=False)
    kept: Mapping[str, Tensor] = field(repr=False)
    report: GraphReport = field(repr=False)


def require_same_base(graph: ForeignGraph, matching: Matching, base: str) -> None:
    """Require that the graph holds the base's values.

    Raises:
        InputError: Something named like a tensor of the base holds other values, or nothing of the
            base was found.
    """
    count = sum(match.source is not None for match in matching.matches)
    if matching.contradicted:
        msg = (
            f"{len(matching.contradicted)} initializer(s) of {str(graph.path)!r} are named like "
            f"tensors of {base!r} and hold other values; {count} match:"
        )
        raise InputError(
            msg,
            items=first_few(matching.contradicted, _SHOWN),
            hint="Give the checkpoint that the graph was exported from; a graph with an adapter "
            "merged in is not its base's.",
        )
    if count == 0:
        msg = (
            f"none of the {len(graph.tensors)} tensors in {str(graph.path)!r} match one of {base!r}"
        )
        raise InputError(
            msg,
            hint="Is it the graph of this base? Quantized and fused weights cannot be matched: "
            "give the graph as the exporter wrote it.",
        )


def adopt(graph: ForeignGraph, matching: Matching, *, prefix: str, model_class: str) -> Adopted:
    """Turn a matched graph into a template; mutates ``graph.model``.

    Raises:
        UnsupportedError: An input or output of the graph is named like a parameter.
    """
    model = graph.model
    held = _one_each(matching.matches)
    names = {
        match.initializer: match.parameter.name
        for match in matching.matches
        if _stored_alike(match, held[match.parameter.name])
    }
    renamed = {**_out_of_the_way(graph, names), **names}
    firsts = {match.initializer for match in held.values()}
    _remove(model.graph.initializer, set(names) - firsts)
    _remove(model.graph.input, set(names))
    rename_values(model.graph, renamed)
    kept = {
        renamed.get(name, name): tensor
        for name, tensor in graph.tensors.items()
        if name not in names and nbytes(tensor) >= INLINE_BYTES
    }
    for tensor in model.graph.initializer:
        if tensor.name in held or tensor.name in kept:
            _empty(tensor)
    return Adopted(
        GraphTemplate(
            onnx_bytes=model.SerializeToString(deterministic=True),
            parameters=tuple(held[name].parameter for name in sorted(held)),
            prefix=prefix,
            model_class=model_class,
            opset=graph.opset,
        ),
        {name: match.source for name, match in held.items() if match.source is not None},
        kept,
        _report(graph, matching, names),
    )


def _one_each(matches: Sequence[Match]) -> dict[str, Match]:
    """Return the first match of each parameter; one in another layout as well is a further name."""
    by_name: dict[str, list[Match]] = defaultdict(list)
    for match in matches:
        by_name[match.parameter.name].append(match)
    held: dict[str, Match] = {}
    for name, (first, *others) in by_name.items():
        ties = [alias for match in others for alias in match.parameter.aliases]
        ties += [other.initializer + COPY for other in others if not _stored_alike(other, first)]
        aliases = tuple(dict.fromkeys((*first.parameter.aliases, *ties)))
        held[name] = replace(first, parameter=replace(first.parameter, aliases=aliases))
    return held


def _stored_alike(one: Match, other: Match) -> bool:
    """Whether two initializers of one parameter hold the same bytes."""
    a, b = one.parameter, other.parameter
    return (a.dtype, a.shape, a.transposed) == (b.dtype, b.shape, b.transposed)


def _out_of_the_way(graph: ForeignGraph, names: Mapping[str, str]) -> dict[str, str]:
    """Return new names for other values that are called like a parameter."""
    taken = defined_names(graph.model)
    bound = {each.name for each in (*graph.model.graph.input, *graph.model.graph.output)}
    moved: dict[str, str] = {}
    for name in set(names.values()) - set(names):
        if name in bound:
            msg = f"an input or output of {str(graph.path)!r} is called {name!r}, as a parameter is"
            raise UnsupportedError(msg, hint="Rename it in the graph.")
        if taken[name]:
            moved[name] = fresh_name(name, taken)
    return moved


def _remove(entries: Any, names: set[str]) -> None:
    """Remove the entries called so from a repeated field; mutates `entries`."""
    for index in reversed(range(len(entries))):
        if entries[index].name in names:
            del entries[index]


def _empty(tensor: onnx.TensorProto) -> None:
    """Leave of an initializer its name, dtype and shape; mutates `tensor`."""
    bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    tensor.CopyFrom(bare)


def _report(graph: ForeignGraph, matching: Matching, names: Mapping[str, str]) -> GraphReport:
    """Return the report on matched and unmatched initializers."""
    found = [match for match in matching.matches if match.source is not None]
    model = graph.model

    return GraphReport(
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        ir_version=model.ir_version,
        opset=graph.opset,
        by_name=sum(match.how == "name" for match in found),
        by_content=sum(match.how == "content" for match in found),
        transposed=sum(match.parameter.transposed for match in found),
        cast=sum(_is_cast(match) for match in found),
        renamed={old: new for old, new in sorted(names.items()) if old != new},
        shared={
            match.parameter.name: list(match.parameter.aliases)
            for match in _one_each(matching.matches).values()
            if match.parameter.aliases
        },
        ambiguous=[
            AmbiguousInitializer(
                initializer=name,
                dtype=graph.tensors[name].dtype.name,
                shape=list(graph.tensors[name].shape),
                equal_to=list(candidates),
            )
            for name, candidates in matching.ambiguous.items()
        ],
        unmatched=[
            InitializerRow(
                initializer=name,
                dtype=graph.tensors[name].dtype.name,
                shape=list(graph.tensors[name].shape),
            )
            for name in matching.unmatched
        ],
        brought_by_adapters=[
            match.parameter.name for match in matching.matches if match.source is None
        ],
        not_in_graph=list(matching.absent),
    )


def _is_cast(match: Match) -> bool:
    return match.source is not None and match.source.dtype.name != match.parameter.dtype
