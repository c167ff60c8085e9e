"""The values that an export holds of its base, read lazily: quantized ones dequantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.files import resolve_inside
from lora_export.core.four_bit_floats import float4_of
from lora_export.core.modes import BASE_GRAPH
from lora_export.core.parameters import TRANSPOSE, Parameter
from lora_export.core.quantization import Quantized
from lora_export.core.safetensors_file import read_header
from lora_export.exports.create import BASE_WEIGHTS
from lora_export.weights.dequantized import dequantized_tensor
from lora_export.weights.quantization.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.core.manifest import Manifest, ParameterUse
    from lora_export.core.tensors import Tensor

__all__ = ["method_of", "parameters_of", "stored_values"]


def parameters_of(manifest: Manifest) -> tuple[Parameter, ...]:
    """Return the parameters of the base graph, as the manifest records them."""
    return tuple(
        Parameter(
            name=use.initializer,
            shape=tuple(reversed(use.shape) if TRANSPOSE in use.transform else use.shape),
            dtype=use.dtype,
            module_type=use.module,
            transposed=TRANSPOSE in use.transform,
            aliases=tuple(use.aliases),
            quantized=_quantized(use),
        )
        for uses in manifest.parameters.values()
        for use in uses
        if use.graph == BASE_GRAPH
    )


def _quantized(use: ParameterUse) -> Quantized | None:
    record = use.quantized
    if record is None:
        return None
    zero_points = record.zero_point is not None
    floats = float4_of(record.scheme)
    return Quantized(record.bits, record.block_size, record.axis, zero_points, floats)


def stored_values(export_dir: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return the base's tensors by the names of parameters, in the graph's layout.

    A quantized parameter is what its integers and scales stand for, in float32.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.

    Raises:
        ExportDirectoryError: The file's tensors are not those of the manifest.
        InputError: The file is damaged.
    """
    held, _ = read_header(resolve_inside(export_dir, BASE_WEIGHTS))
    found: dict[str, Tensor] = dict(held)
    for parameter in parameters_of(manifest):
        if (value := dequantized_tensor(parameter, held)) is not None:
            found[parameter.name] = value
    return found


def method_of(manifest: Manifest) -> str:
    """Return how the integers of an export are found; any, where nothing is quantized."""
    record = manifest.base.quantization
    return DEFAULT_METHOD if record is None else record.method
