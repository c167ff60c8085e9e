"""The section ``quantize`` of a recipe: what it leaves open, and what it needs of a graph.

Graphs are quantized by `build_quantized`, which is imported for a recipe that has the section.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.four_bit_floats import float4_of
from lora_export.core.quantization import ALL_INPUTS, BLOCK_SIZES, BLOCKS_OPSET, INT8_BLOCK
from lora_export.core.quantization_record import QuantizationRecord
from lora_export.weights.quantization.methods import DEFAULT_METHOD, METHODS, NEAREST

if TYPE_CHECKING:
    from lora_export.commands.recipe import QuantizeSpec
    from lora_export.core.quantization_record import StoredForm
    from lora_export.core.targets import Target
    from lora_export.graph.quantize.schemes import QuantizeChoice

__all__ = [
    "choice_of",
    "opset_for",
    "reads_blocks",
    "record_of",
    "require_blocks",
    "require_scales",
    "with_int8_blocks",
    "with_stored_blocks",
]

_WITHOUT_BLOCKS = "store int8 with one scale per output: --quantize int8."


def reads_blocks(opset: int | None, target: Target) -> bool:
    """Whether a graph can have blocks: by the opset that the user asks for, else by its target.

    Versions of TensorRT before 10.15 document opset 20, which has none.
    """
    return not target.tensorrt if opset is None else opset >= BLOCKS_OPSET


def with_int8_blocks(spec: QuantizeSpec) -> QuantizeSpec:
    """Return a section whose int8 weights are in blocks, where it leaves that open."""
    is_open = spec.weights == "int8" and spec.block_size is None
    if not is_open or spec.head == "int4":  # whose blocks are smaller
        return spec
    return spec.model_copy(update={"block_size": INT8_BLOCK})


def with_stored_blocks(spec: QuantizeSpec, stored: StoredForm | None) -> QuantizeSpec:
    """Return a section whose int4 blocks are those of the base, where it leaves that open.

    Args:
        spec: The section.
        stored: The form in which the base is stored; None where it is not quantized.
    """
    if stored is None or spec.block_size is not None or stored.schemes != [spec.weights]:
        return spec
    sizes = [size for size in BLOCK_SIZES if [size] == stored.group_sizes]
    return spec.model_copy(update={"block_size": sizes[0]}) if sizes else spec


def opset_for(spec: QuantizeSpec | None, opset: int) -> int:
    """Return the opset of a graph that is quantized so, `opset` or the first that has blocks."""
    if spec is None or not choice_of(spec).needs_blocks:
        return opset
    return max(opset, BLOCKS_OPSET)


def require_blocks(spec: QuantizeSpec | None, opset: int | None, target: Target) -> None:
    """Require that the graph of a build can have the blocks of its quantized weights.

    Args:
        spec: The recipe's section ``quantize``.
        opset: The opset that the user asks for, if any.
        target: Where the graph is to run.

    Raises:
        UnsupportedError: The opset, or the oldest TensorRT of the target, has none.
    """
    if spec is None or not choice_of(spec).needs_blocks:
        return
    if opset is not None and opset < BLOCKS_OPSET:
        msg = f"{_blocks_of(spec)} needs opset {BLOCKS_OPSET}, and the opset is set to {opset}"
        raise UnsupportedError(msg, hint=f"Leave --opset out. Or {_WITHOUT_BLOCKS}")
    if opset is None and target.blocks is not None:
        later = target.software[target.tensorrt.index(target.blocks)]
        msg = (
            f"{_blocks_of(spec)} needs opset {BLOCKS_OPSET}; {target.name!r} may have "
            f"{target.software[0]}, whose TensorRT {target.tensorrt[0]} reads opset {target.opset}"
        )
        hint = f"For {later} or newer: --opset {BLOCKS_OPSET}. Or {_WITHOUT_BLOCKS}"
        raise UnsupportedError(msg, hint=hint)


def require_scales(spec: QuantizeSpec | None, target: Target) -> None:
    """Require that the library of a target reads the scales that the method of a build gives.

    Raises:
        UnsupportedError: They may be negative, and the target has TensorRT.
    """
    if spec is None or not METHODS[spec.method].negative_scales:
        return
    if "int4" in (spec.weights, spec.head) and target.tensorrt:
        msg = (
            f"method {spec.method!r} gives negative scales, which TensorRT refuses; "
            f"{target.name!r} has it"
        )
        raise UnsupportedError(msg, hint=f"Use quantize: {{method: {DEFAULT_METHOD}}} for it.")


def _blocks_of(spec: QuantizeSpec) -> str:
    """Return the part of a choice that is stored in blocks."""
    if spec.weights == "int4":
        return "int4"
    return f"int8 in blocks of {spec.block_size}" if spec.block_size else "a head of int4"


def record_of(spec: QuantizeSpec | None) -> QuantizationRecord | None:
    """Return what the manifest says of a recipe's section ``quantize``."""
    return None if spec is None else QuantizationRecord(**_settings(spec))


def choice_of(spec: QuantizeSpec) -> QuantizeChoice:
    """Return what a section ``quantize`` asks for, as the graph is told it.

    Raises:
        UsageError: It asks for int4 without blocks.
    """
    from lora_export.graph.quantize.schemes import QuantizeChoice

    if spec.block_size == ALL_INPUTS and "int4" in (spec.weights, spec.head):
        msg = f"int4 weights share scales in blocks; a block size of {ALL_INPUTS!r} is for int8"
        raise UsageError(msg, hint="Choose a block size from 16 to 256, or int8.")
    return QuantizeChoice(**{**_settings(spec), "keep": tuple(spec.keep)})


def _settings(spec: QuantizeSpec) -> dict[str, Any]:
    """Return a section as values; a block size of all inputs is none."""
    settings = spec.model_dump()
    if float4_of(spec.weights) is not None:
        settings["method"] = NEAREST
    return settings | ({"block_size": None} if spec.block_size == ALL_INPUTS else {})
