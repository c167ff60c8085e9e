"""A quantized graph's row in the report besides its figures: scheme, bytes, what is kept."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

from lora_export.core.files import resolve_inside
from lora_export.core.modes import Mode
from lora_export.core.quantization import integers_name
from lora_export.core.reports.quantization_report import QuantizationRow, SchemeRow
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import nbytes
from lora_export.exports.stored_values import parameters_of
from lora_export.graph.quantize.schemes import QuantizeChoice, reason_to_keep
from lora_export.graph.spec import tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.core.parameters import Parameter
    from lora_export.core.reports.quantization_report import LayerLossRow
    from lora_export.core.tensors import Tensor

__all__ = ["quantization_row"]

_MATRIX: Final = 2
_OTHERWISE: Final = "it is read otherwise than by a product, or an adapter brings its own"


def quantization_row(
    export_dir: Path, manifest: Manifest, record: GraphRecord, layers: Mapping[str, LayerLossRow]
) -> QuantizationRow:
    """Return the row of a quantized graph, not judged yet.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        record: The graph.
        layers: The figures of its quantized parameters.
    """
    made = manifest.base.quantization
    sizes = [layers[each].block_size for each in layers]
    scheme = None
    if made is not None:
        usual = max(set(sizes), key=sizes.count) if sizes else made.block_size or 0
        scheme = SchemeRow(weights=made.weights, block_size=usual, method=made.method)
    own = record.weights[-1:] if record.mode is Mode.MERGED else record.weights
    held: dict[str, Tensor] = {}
    for file in own:
        held |= read_header(resolve_inside(export_dir, file))[0]
    parameters = parameters_of(manifest)
    stored = [each for each in parameters if each.name in held or integers_name(each.name) in held]
    return QuantizationRow(
        verdict="ungated",
        scheme=scheme,
        layers=dict(layers),
        kept=_kept(manifest, parameters),
        float_bytes=sum(prod(each.shape) * each.stored_dtype.itemsize_bytes for each in stored),
        quantized_bytes=sum(nbytes(each) for each in held.values()),
    )


def _kept(manifest: Manifest, parameters: Sequence[Parameter]) -> dict[str, str]:
    """Return the matrices that stay as they are, each with the reason."""
    record = manifest.base.quantization
    if record is None:
        return {}
    choice = QuantizeChoice(**{**record.model_dump(), "keep": tuple(record.keep)})
    labels = tasks.by_name(manifest.base.task).label_parameters
    heads = dict.fromkeys(labels, "it is a classification head")
    found = {}
    for each in parameters:
        matrix = len(each.shape) >= _MATRIX and each.stored_dtype.floating and not each.is_buffer
        if each.quantized is None and matrix:
            reason = reason_to_keep(each, choice, is_head=False, required=heads)
            if not reason and each.module_type == "Embedding" and record.embeddings == "keep":
                reason = "embeddings are kept"
            found[each.name] = reason or _OTHERWISE
    return found
