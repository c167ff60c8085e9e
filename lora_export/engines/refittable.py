"""The weights of an engine that may change, and how each is made from the checkpoint.

TensorRT's parser names a weight as the graph names its initializer and takes it in the graph's
layout. So the map from a parameter to a weight is the manifest's own: name, transposition, dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH, Mode
from lora_export.core.safetensors_file import read_header
from lora_export.exports.create import BASE_WEIGHTS
from lora_export.graph.spec.onnx_file import parse_onnx

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.core.manifest import Manifest, ParameterUse
    from lora_export.core.tensors import Tensor
    from lora_export.ondevice.trt.record_table import RefitTable

__all__ = ["changed_weights", "refit_rows", "refittable_weights"]


def changed_weights(export_dir: Path, manifest: Manifest, adapter: str) -> dict[str, Tensor]:
    """Return the weights that an adapter of the export changes, merged, as its file has them.

    Raises:
        UnsupportedError: The export has no merged graph of it.
        InputError: Its weight file is missing or damaged.
    """
    record = manifest.graphs.get(adapter)
    if record is None or record.mode is not Mode.MERGED:
        msg = f"the export has no merged weights of {adapter!r}"
        merged = [name for name, each in manifest.graphs.items() if each.mode is Mode.MERGED]
        raise UnsupportedError(msg, hint=f"It has those of: {', '.join(merged) or 'none'}.")
    found: dict[str, Tensor] = {}
    for file in record.weights:
        if file != BASE_WEIGHTS:
            tensors, _ = read_header(resolve_inside(export_dir, file))
            found |= tensors
    return found


def refittable_weights(
    export_dir: Path, manifest: Manifest, onnx: str, onnx_bytes: bytes
) -> tuple[str, ...]:
    """Return the weights of a graph that the export's adapters change, sorted.

    A head of another width than the base's is left out: a refit changes no shape.

    Raises:
        UnsupportedError: There are none, or they are quantized.
    """
    for uses in manifest.parameters.values():
        if quantized := [each for each in uses if each.quantized is not None]:
            msg = (
                f"{onnx!r} has quantized weights, such as {quantized[0].initializer!r}: a refit "
                "cannot change their integers"
            )
            hint = "Leave --refit out: each adapter has an engine. Or export without --quantize."
            raise UnsupportedError(msg, hint=hint)
    shapes = {each.name: tuple(each.dims) for each in parse_onnx(onnx_bytes).graph.initializer}
    merged = [name for name, each in manifest.graphs.items() if each.mode is Mode.MERGED]
    names = {
        name
        for adapter in merged
        for name, tensor in changed_weights(export_dir, manifest, adapter).items()
        if shapes.get(name) == tensor.shape
    }
    if not names:
        msg = f"no adapter of the export changes a weight of {onnx!r} by a refit"
        raise UnsupportedError(msg, hint="--refit marks the weights that merged adapters change.")
    return tuple(sorted(names))


def refit_rows(manifest: Manifest) -> dict[str, RefitTable]:
    """Return for each weight of the base graph how it is made from the checkpoint."""
    found: dict[str, RefitTable] = {}
    for parameter, uses in manifest.parameters.items():
        for use in uses:
            if use.graph == BASE_GRAPH:
                row = found.setdefault(use.initializer, _row(use))
                row["parameters"].append(parameter)
    return dict(sorted(found.items()))


def _row(use: ParameterUse) -> RefitTable:
    return {
        "parameters": [],
        "transform": list(use.transform),
        "dtype": use.dtype,
        "shape": list(use.shape),
        "file": BASE_WEIGHTS,
    }
