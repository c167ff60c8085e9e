"""Checks of quantized weights against a parser: blocks of scales, and integers that are looked up.

A quantized embedding is looked up as int8 and scaled behind it (Gather, Transpose, Cast, Mul). The
builder takes a constant of int8 in front of a dequantization only, and `ondevice.trt.network_edits`
puts one of scale 1 there: what the parser's table says of int8 does not matter for these nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx

from lora_export.core.quantization import BLOCKS_OPSET
from lora_export.engines.findings import Finding
from lora_export.engines.parser_table import version_of
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from lora_export.weights.quantization.methods import DEFAULT_METHOD, METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.core.quantization_record import QuantizationRecord
    from lora_export.core.targets import Target
    from lora_export.engines.graph_view import GraphView, PlacedNode
    from lora_export.engines.parser_table import Parser

__all__ = [
    "WITHOUT_BLOCKS",
    "check_quantized",
    "check_scales",
    "has_blocks",
    "looks_up_integers",
    "lookup_nodes",
]

WITHOUT_BLOCKS: Final = (
    "quantize to int8 with one scale per output: --quantize int8 --quantize-block-size all"
)
_INT8: Final = onnx.TensorProto.INT8
_INTEGERS: Final = frozenset({"Gather", "Transpose"})
"""Operators that give the integers on as they are."""


def check_quantized(view: GraphView, parser: Parser, target: Target) -> Iterator[Finding]:
    """Yield what a parser is not known to read of quantized weights.

    Args:
        view: The graph.
        parser: The parser's table.
        target: Where the engine is to run.
    """
    blocks = tuple(each.name for each in view.nodes if _is_blocked(each))
    if blocks and parser.opset_max < BLOCKS_OPSET:
        known = target.blocks is None or version_of(target.blocks) <= parser.number
        yield Finding(
            "warning" if known else "error",
            "quantized-blocks",
            "blocks of scales",
            f"{parser.name} is documented for opsets up to {parser.opset_max}; a DequantizeLinear "
            f"with blocks, as weights of int4 have, is of opset {BLOCKS_OPSET}",
            f"Build with a newer TensorRT, or {WITHOUT_BLOCKS}.",
            blocks,
        )
    gathers = [each for each in lookup_nodes(view) if each.node.op_type == "Gather"]
    if gathers:
        tried = "" if parser.library == TENSORRT_RTX else " (tried with TensorRT for RTX)"
        yield Finding(
            "note",
            "quantized-lookup",
            "embeddings of int8",
            "the build puts a dequantization of scale 1 before the look-up, as the builder takes "
            f"int8 in front of one only{tried}",
            "" if parser.library == TENSORRT_RTX else "Build without --trtexec.",
            tuple(each.name for each in gathers),
        )


def check_scales(record: QuantizationRecord | None, library: str) -> Iterator[Finding]:
    """Yield what a library does not read of the scales of an export.

    Args:
        record: What the manifest says of the export's quantization.
        library: ``tensorrt`` or ``tensorrt-rtx``.
    """
    method = METHODS.get(record.method) if record is not None else None
    if record is None or method is None or not method.negative_scales:
        return
    if "int4" in (record.weights, record.head):
        rtx = library == TENSORRT_RTX
        yield Finding(
            "warning" if rtx else "error",
            "quantized-scales",
            f"method {record.method}",
            "scales of int4 are negative in part: "
            + ("no GPU has run such an engine here" if rtx else "the parser refuses them"),
            f"Quantize with method {DEFAULT_METHOD}.",
        )


def has_blocks(view: GraphView) -> bool:
    """Return whether a graph has quantized weights in blocks, for which it needs its opset."""
    return any(map(_is_blocked, view.nodes))


def lookup_nodes(view: GraphView) -> list[PlacedNode]:
    """Return the nodes that look up integers of quantized embeddings, and that hand them on."""
    found: list[PlacedNode] = []
    looked_up: set[str] = set()
    for each in view.nodes:
        name, scope = each.input(0), each.scope
        starts = name in scope.constants and scope.types.get(name) == _INT8
        if (each.node.op_type == "Gather" and starts) or name in looked_up:
            found.append(each)
            if each.node.op_type in _INTEGERS:
                looked_up.add(each.output(0))
    return found


def looks_up_integers(onnx_bytes: bytes) -> bool:
    """Return whether a graph looks up int8 constants, for which the network is changed."""
    graph = parse_onnx(onnx_bytes).graph
    integers = {each.name for each in graph.initializer if each.data_type == _INT8}
    return any(each.op_type == "Gather" and each.input[0] in integers for each in graph.node)


def _is_blocked(node: PlacedNode) -> bool:
    return node.node.op_type == "DequantizeLinear" and bool(node.attribute("block_size", 0))
