"""A base graph that the user brings: read, matched to the checkpoint, used in an export."""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from lora_export.adapters.fit import header_parameters, prefix_of
from lora_export.adapters.resolve import ModelNames
from lora_export.core.errors import AdapterError
from lora_export.core.listing import first_few
from lora_export.exports.plan import BasePlan
from lora_export.graph.foreign.adopt import adopt, require_same_base
from lora_export.graph.foreign.match import match_graph
from lora_export.graph.foreign.open_graph import open_graph
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import PAST, WRITE_INDICES, Choices, read_signature

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.reports.graph_report import GraphReport
    from lora_export.graph.spec.signature import Signature
    from lora_export.graph.spec.template import GraphTemplate
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["OwnGraph", "adopt_graph", "require_in_graph"]

_RANK_OF_LOGITS = 3
_SHOWN = 5


@dataclass(frozen=True)
class OwnGraph:
    """A user's graph that takes the place of a traced one.

    Attributes:
        path: The user's file.
        template: The graph, its parameters named as the checkpoint names them.
        plan: Where their values come from, and what else the graph holds.
        report: ``reports/graph.json``.
    """

    path: Path
    template: GraphTemplate
    plan: BasePlan
    report: GraphReport = field(repr=False)

    @property
    def dtype(self) -> str:
        """The dtype of most of the parameters' bytes."""
        sizes: Counter[str] = Counter()
        for each in self.template.parameters:
            sizes[each.dtype] += prod(each.shape) * each.stored_dtype.itemsize_bytes
        return sizes.most_common(1)[0][0]

    @property
    def choices(self) -> Choices:
        """Its interface as that of a decoder: its cache, and whether it returns the last logits."""
        inputs = {each.name: each.axes for each in self._signature.inputs}
        length = inputs.get("attention_mask", ())[1:2] if WRITE_INDICES in inputs else ()
        returned = self._signature.outputs[0].axes if self._signature.outputs else ()
        last = len(returned) == _RANK_OF_LOGITS and returned[1] == 1
        one_token = inputs.get("input_ids", ())[1:2] == (1,)
        return Choices(
            cache=any(name.startswith(PAST) for name in inputs),
            logits="last" if last and not one_token else "all",
            cache_length=next((each for each in length if isinstance(each, int)), None),
        )

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of its outputs, in order."""
        return self._signature.output_names

    @property
    def _signature(self) -> Signature:
        return read_signature(parse_onnx(self.template.onnx_bytes))


def adopt_graph(path: Path, checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> OwnGraph:
    """Read the graph in `path` and match it to `checkpoint`.

    Args:
        path: An ``.onnx`` file; external data lie in its folder or below.
        checkpoint: The base that it was exported from.
        adapters: Tell the bare model's name, where the model type does not.

    Raises:
        InputError: The file is damaged, or is a graph of another base.
        UnsupportedError: Its weights are where they cannot be changed.
    """
    headers = header_parameters(checkpoint.tensors)
    model_type = str(checkpoint.config["model_type"])
    prefix = prefix_of(model_type, headers, next(iter(adapters), None))
    graph = open_graph(path, {prod(each.shape) for each in headers})
    matching = match_graph(graph, checkpoint.tensors, prefix)
    require_same_base(graph, matching, checkpoint.source)
    architectures = checkpoint.config.get("architectures") or [model_type]
    adopted = adopt(graph, matching, prefix=prefix, model_class=str(architectures[0]))
    missing = tuple(p.name for p in adopted.template.parameters if p.name not in adopted.sources)
    plan = BasePlan(adopted.sources, missing, matching.absent, adopted.kept)
    return OwnGraph(path, adopted.template, plan, adopted.report)


def require_in_graph(graph: OwnGraph, adapter: Adapter, drop: Sequence[str]) -> None:
    """Require that what `adapter` changes of the base is in the graph, and can be told apart.

    What neither has is refused as for every graph; see `lora_export.adapters.resolve`.

    Raises:
        AdapterError: Parameters of the base that no initializer was matched to; up to five are
            named.
    """
    template = graph.template
    names = ModelNames(template.parameters, template.prefix)
    equal = {name: row.initializer for row in graph.report.ambiguous for name in row.equal_to}
    lost: list[str] = []
    for item in adapter.items:
        path = item.parameter
        if names.find(path) or any(fnmatch.fnmatchcase(path, pattern) for pattern in drop):
            continue
        absent = [name for name in names.candidates(path) if name in graph.plan.unused]
        if not absent:
            continue
        why = f": {equal[absent[0]]!r} may be it or an equal one" if absent[0] in equal else ""
        lost.append(f"{path}{why}")
    if lost:
        msg = (
            f"adapter {adapter.source!r} changes {len(lost)} parameter(s) of the base that the "
            f"graph {str(graph.path)!r} does not hold as initializers:"
        )
        others = ", ".join(row.initializer for row in graph.report.unmatched[:_SHOWN])
        raise AdapterError(
            msg,
            items=first_few(lost, _SHOWN),
            hint="Were weights fused or quantized? Export the graph without optimizations."
            + (f" Unmatched initializers: {others}." if others else ""),
        )
