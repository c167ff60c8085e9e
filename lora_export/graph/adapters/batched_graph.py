"""LoRA per row: stacks of all adapters in the graph, and an adapter for each row of a batch.

Where the base graph computes ``y = x W`` for an adapted weight, this one computes, for row i of a
batch whose adapter is ``k = adapter_ids[i]``,

    z[i] = y[i] + (x[i] A[k]) B[k]      A [n, in, r], s folded into B [n, r, out]
    g[k] ∘ z[i]                         DoRA; g [n, out] is m / ‖W + s·B A‖ of each output

Row 0 of every stack is the base: zeros in A and B, ones in g, its own values elsewhere. Smaller
ranks are padded with zeros, which add nothing. Heads and biases that adapters carry whole are
stacks too; logits that an adapter's head does not have are the lowest number of the dtype, so that
neither argmax nor softmax sees them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.nodes.axis_shapes import large_sizes, shapes_of
from lora_export.graph.nodes.weight_uses import (
    ONE,
    forget_shapes,
    node,
    readers_of,
    rescaled,
    sizes_of,
    unsupported,
    use_of,
)
from lora_export.graph.quantize.quantized_graph import (
    dequantized_dtypes,
    drop_unread,
    join_readers,
    separate_readers,
)
from lora_export.graph.spec.external_values import place_outside
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.judge.preset_runner import ADAPTER_IDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.core.parameters import Parameter
    from lora_export.graph.nodes.weight_uses import Use
    from lora_export.graph.spec.template import Placement

__all__ = [
    "ADAPTER_IDS",
    "LABELS_STACK",
    "Stacks",
    "stack_a",
    "stack_b",
    "stack_magnitude",
    "stack_of",
    "with_stacks",
]

LABELS_STACK: Final = "labels.stack"
"""Which logits each row has, ``bool [n, labels]``."""

_AXIS_1: Final = "batched_axis_1"
_HINT: Final = "Leave the module out, or let it be swapped by the request: --mode swappable."
_LOWEST: Final = "batched_lowest"
_ROW, _TOKENS = 2, 3
"""Ranks of values with one vector for each row of the batch, and with one for each token."""


@dataclass(frozen=True)
class Stacks:
    """The stacks of a batched graph.

    Attributes:
        places: Where each stack lies; see `stack_a` and its kin for their names.
        rows: How many rows each has, the base's included.
        ranks: The weights that get a low-rank term, with its padded rank.
        magnitudes: Names of those that get DoRA's factor too.
        values: Parameters that adapters carry whole.
        labels: The width of the widest head, where the base's may change.
        resizable: Names of the parameters whose first axis (in the model) is that width.
    """

    places: Mapping[str, Placement] = field(repr=False)
    rows: int
    ranks: Sequence[tuple[Parameter, int]]
    magnitudes: frozenset[str] = frozenset()
    values: tuple[Parameter, ...] = ()
    labels: int | None = None
    resizable: frozenset[str] = frozenset()


def stack_a(weight: str) -> str:
    """Return the name of the stack of A of a weight, ``[n, in, r]``."""
    return f"{weight.removesuffix('.weight')}.lora_A.stack"


def stack_b(weight: str) -> str:
    """Return the name of the stack of s·B of a weight, ``[n, r, out]``."""
    return f"{weight.removesuffix('.weight')}.lora_B.stack"


def stack_magnitude(weight: str) -> str:
    """Return the name of the stack of DoRA's factors of a weight, ``[n, out]``."""
    return f"{weight.removesuffix('.weight')}.lora_magnitude.stack"


def stack_of(parameter: str) -> str:
    """Return the name of the stack of a parameter, ``[n, …]`` in the graph's layout."""
    return f"{parameter}.stack"


def with_stacks(onnx_bytes: bytes, stacks: Stacks) -> bytes:
    """Return the graph with the input ``adapter_ids: int64[batch]``; same input, same bytes.

    Args:
        onnx_bytes: The base graph; its parameters may lie in other files.
        stacks: What the adapters bring.

    Raises:
        ExportDirectoryError: The graph cannot be parsed, or lacks a parameter.
        UnsupportedError: The rows of the batch is unknown apart where a parameter is read, or
            it is read by an operator that takes no value for each row.
    """
    return _Rewriting(parse_onnx(onnx_bytes), stacks).done()


class _Rewriting:
    """One graph on its way; its methods add to `_before` and `_instead`, by node."""

    def __init__(self, model: onnx.ModelProto, stacks: Stacks) -> None:
        join_readers(model)
        self._model, self._graph, self._stacks = model, model.graph, stacks
        self._nodes = list(model.graph.node)
        self._readers = readers_of(self._nodes)
        axes = [axis for value in model.graph.input for axis in value.type.tensor_type.shape.dim]
        if not axes:
            msg = "the base graph has no input, and so no batch"
            raise ExportDirectoryError(msg, hint="The export is damaged; export again.")
        sizes = large_sizes(axis.dim_param for axis in axes if axis.dim_param)
        self._axes = shapes_of(model, sizes)
        self._batch = axes[0].dim_param
        self._batch_size = sizes.get(self._batch)
        self._dtypes = {each.name: each.data_type for each in model.graph.initializer}
        self._dtypes |= dequantized_dtypes(model.graph)
        self._before: dict[int, list[onnx.NodeProto]] = {}
        self._instead: dict[int, list[onnx.NodeProto]] = {}
        self._rows: dict[str, str] = {}
        self._added: dict[str, onnx.TensorProto] = {}

    def done(self) -> bytes:
        stacks, graph = self._stacks, self._graph
        wanted = {each.name for each, _ in stacks.ranks} | {each.name for each in stacks.values}
        if missing := wanted - set(self._dtypes):
            msg = f"the graph has no initializer {min(missing)!r}"
            raise ExportDirectoryError(msg, hint="Graph and manifest are not of one export.")
        forget_shapes(graph, stacks.resizable)
        ranks = dict(stacks.ranks)
        uses = {
            each.name: [use_of(self._nodes, at, each) for at in self._readers[each.name]]
            for each in ranks
        }
        heads = [each for each in stacks.values if len(each.shape) > 1]
        for parameter in heads:
            for at in self._readers[parameter.name]:
                self._replace_matrix(use_of(self._nodes, at, parameter), parameter)
        for parameter in stacks.values:
            if parameter not in heads:
                self._replace_vector(parameter)
        for parameter, rank in ranks.items():
            if not uses[parameter.name]:
                raise unsupported(parameter, "no node reads it")
            for use in uses[parameter.name]:
                self._add_term(use, parameter, rank)
        ids = helper.make_tensor_value_info(ADAPTER_IDS, TensorProto.INT64, [self._batch])
        graph.input.append(ids)
        tail = self._mask() if stacks.labels is not None else []
        del graph.node[:]
        for at, old in enumerate(self._nodes):
            graph.node.extend(self._before.get(at, ()))
            graph.node.extend(self._instead.get(at, (old,)))
        graph.node.extend(tail)
        drop_unread(graph)
        read = set(readers_of(list(graph.node)))
        kept = [each for each in graph.initializer if each.name in read]
        del graph.initializer[:]
        graph.initializer.extend([*kept, *self._added.values()])
        separate_readers(self._model)
        placed: bytes = self._model.SerializeToString(deterministic=True)
        return placed

    # ------------------------------------------------------------------------ parts of a rewriting

    def _add_term(self, use: Use, parameter: Parameter, rank: int) -> None:
        """Add ``(x A[k]) B[k]`` to what the weight gives, and scale it by DoRA's factor."""
        inputs, outputs = self._matrix_shape(parameter)
        dtype, rows, name = self._dtypes[parameter.name], self._stacks.rows, parameter.name
        nodes = self._instead.setdefault(use.at, [self._nodes[use.at]])
        last = next(each for each in reversed(nodes) if each.output)
        out = last.output[0]
        last.output[0] = f"{out}.base"
        if last.name == f"{out}.{last.op_type}":  # one that was put here for a head
            last.name = f"{out}.base.{last.op_type}"
        b = self._gathered(use.at, stack_b(name), dtype, [rows, rank, outputs])
        if use.gather:
            tokens = self._require_rows(parameter, use.x, (_ROW,))
            a = self._stack(stack_a(name), dtype, [rows * inputs, rank])
            nodes += [
                node("Cast", [use.x], f"{out}.tokens", to=TensorProto.INT64),
                node("Mul", [ADAPTER_IDS, self._number(inputs)], f"{out}.first"),
                node("Unsqueeze", [f"{out}.first", self._axis()], f"{out}.start"),
                node("Add", [f"{out}.start", f"{out}.tokens"], f"{out}.places"),
                node("Gather", [a, f"{out}.places"], f"{out}.lora_A"),
            ]
            rank_of_x = tokens + 1
        else:
            rank_of_x = self._require_rows(parameter, use.x, (_ROW, _TOKENS))
            a = self._gathered(use.at, stack_a(name), dtype, [rows, inputs, rank])
            x = self._as_tokens(nodes, use.x, rank_of_x, f"{out}.x")
            nodes.append(node("MatMul", [x, a], f"{out}.lora_A"))
        dora = name in self._stacks.magnitudes
        summed = f"{out}.lora" if dora else out
        nodes.append(node("MatMul", [f"{out}.lora_A", b], f"{out}.lora_B"))
        delta = self._as_row(nodes, f"{out}.lora_B", rank_of_x)
        nodes.append(node("Add", [f"{out}.base", delta], summed))
        if not dora:
            return
        g = self._gathered(use.at, stack_magnitude(name), dtype, [rows, outputs])
        g = self._as_tokens(nodes, g, _ROW, f"{out}.g") if rank_of_x == _TOKENS else g
        if use.bias and ONE not in self._added:
            self._added[ONE] = helper.make_tensor(ONE, dtype, [], [1.0])
        bias = self._rows.get(stack_of(use.bias), use.bias)
        nodes += rescaled(summed, g, bias, out)

    def _replace_matrix(self, use: Use, parameter: Parameter) -> None:
        """Multiply each row by its own matrix, ``[in, out]``, in place of the base's."""
        if use.gather:
            raise unsupported(parameter, "adapters carry whole tables of it")
        rank = self._require_rows(parameter, use.x, (_ROW, _TOKENS))
        inputs, outputs = self._matrix_shape(parameter)
        shape = [self._stacks.rows, inputs, outputs]
        own = self._gathered(use.at, stack_of(parameter.name), self._dtypes[parameter.name], shape)
        out = self._nodes[use.at].output[0]
        nodes: list[onnx.NodeProto] = []
        x = self._as_tokens(nodes, use.x, rank, f"{out}.row")
        product = f"{out}.own" if rank == _ROW or use.bias else out
        nodes.append(node("MatMul", [x, own], product))
        if rank == _ROW:
            flat = f"{out}.flat" if use.bias else out
            nodes.append(node("Squeeze", [product, self._axis()], flat))
            product = flat
        if use.bias:
            nodes.append(node("Add", [product, use.bias], out))
        self._instead[use.at] = nodes

    def _replace_vector(self, parameter: Parameter) -> None:
        """Add to each row its own bias, in place of the base's."""
        name = parameter.name
        width = self._stacks.labels if name in self._stacks.resizable else parameter.shape[0]
        shape = [self._stacks.rows, width or parameter.shape[0]]
        for at in self._readers[name]:
            nodes = self._instead.setdefault(at, [self._nodes[at]])
            reader = next(each for each in nodes if name in each.input)
            out = reader.output[0] if reader.output else ""
            rank = self._require_rows(parameter, self._nodes[at].output[0], (_ROW, _TOKENS), out)
            own = self._gathered(at, stack_of(name), self._dtypes[name], shape)
            place = list(reader.input).index(name)
            before: list[onnx.NodeProto] = []
            if rank == _TOKENS:
                own = self._as_tokens(before, own, _ROW, f"{out}.bias")
                self._before.setdefault(at, []).extend(before)
            if reader.op_type == "Add" or (reader.op_type == "Gemm" and place == _ROW):
                reader.input[place] = own
            elif reader.op_type == "LayerNormalization" and place == _ROW:
                del reader.input[place]
                reader.output[0] = f"{out}.unbiased"
                nodes.insert(nodes.index(reader) + 1, node("Add", [f"{out}.unbiased", own], out))
            else:
                raise unsupported(parameter, f"it is read by {reader.op_type} ({out!r})")

    def _mask(self) -> list[onnx.NodeProto]:
        """Return the nodes that hide the logits which a row's head does not have."""
        labels, output = self._stacks.labels or 0, self._graph.output[0]
        element = output.type.tensor_type.elem_type
        numpy = next(each.numpy for each in DTYPES.values() if each.onnx == element)
        lowest = -65504.0 if element == TensorProto.FLOAT16 else -3.3895e38
        self._added[_LOWEST] = (
            helper.make_tensor(_LOWEST, element, [], [lowest])
            if numpy.kind == "V"
            else numpy_helper.from_array(np.array(np.finfo(numpy).min, numpy), _LOWEST)
        )
        name, nodes = output.name, []
        for instead in (*self._instead.values(), self._nodes):
            for each in instead:
                for at, output_name in enumerate(each.output):
                    if output_name == name:
                        each.output[at] = f"{name}.all"
        rows = f"{LABELS_STACK}.rows"
        mask = self._stack(LABELS_STACK, TensorProto.BOOL, [self._stacks.rows, labels])
        nodes.append(node("Gather", [mask, ADAPTER_IDS], rows))
        axes = output.type.tensor_type.shape.dim
        if len(axes) == _TOKENS:
            rows = self._as_tokens(nodes, rows, _ROW, f"{rows}.tokens")
        nodes.append(node("Where", [rows, f"{name}.all", _LOWEST], name))
        axes[-1].Clear()
        axes[-1].dim_value = labels
        return nodes

    # ------------------------------------------------------------------------ small things

    def _matrix_shape(self, parameter: Parameter) -> tuple[int, int]:
        inputs, outputs = sizes_of(parameter)
        if parameter.name in self._stacks.resizable and self._stacks.labels is not None:
            outputs = self._stacks.labels
        return inputs, outputs

    def _require_rows(
        self, parameter: Parameter, value: str, ranks: tuple[int, ...], shown: str = ""
    ) -> int:
        """Return the rank of a value whose first axis is the batch."""
        axes = self._axes.get(value)
        if axes is not None and len(axes) in ranks and axes[0] == self._batch_size:
            return len(axes)
        what = "of unknown shape" if axes is None else f"a value with {len(axes)} axes"
        why = f"{shown or value!r} is {what}, of which the rows of the batch are not the first"
        raise unsupported(parameter, why, hint=_HINT)

    def _stack(self, name: str, dtype: int, shape: Sequence[int]) -> str:
        """Declare a stack as an initializer in the stack file; return its name."""
        if name not in self._added:
            place = self._stacks.places[name]
            tensor = TensorProto(name=name, data_type=dtype, dims=shape)
            place_outside(tensor, place.location, place.offset_bytes, place.length_bytes)
            self._added[name] = tensor
        return name

    def _gathered(self, at: int, name: str, dtype: int, shape: Sequence[int]) -> str:
        """Return the name of the batch's rows of a stack, gathered before the first reader."""
        if name not in self._rows:
            self._rows[name] = f"{name}.rows"
            stack = self._stack(name, dtype, shape)
            gather = node("Gather", [stack, ADAPTER_IDS], f"{name}.rows")
            self._before.setdefault(min(at, *self._first(name)), []).append(gather)
        return self._rows[name]

    def _first(self, name: str) -> tuple[int, ...]:
        """Return where the parameter of a stack is read, which may be earlier than here."""
        return tuple(self._readers.get(name.removesuffix(".stack"), ())) or (len(self._nodes),)

    def _as_tokens(self, nodes: list[onnx.NodeProto], value: str, rank: int, name: str) -> str:
        if rank == _TOKENS:
            return value
        nodes.append(node("Unsqueeze", [value, self._axis()], name))
        return name

    def _as_row(self, nodes: list[onnx.NodeProto], value: str, rank: int) -> str:
        if rank == _TOKENS:
            return value
        nodes.append(node("Squeeze", [value, self._axis()], f"{value}.row"))
        return f"{value}.row"

    def _axis(self) -> str:
        if _AXIS_1 not in self._added:
            self._added[_AXIS_1] = helper.make_tensor(_AXIS_1, TensorProto.INT64, [1], [1])
        return _AXIS_1

    def _number(self, value: int) -> str:
        name = f"batched_{value}"
        if name not in self._added:
            self._added[name] = helper.make_tensor(name, TensorProto.INT64, [], [value])
        return name
