"""The quantization of each parameter of a graph: the choice of a user applied to a graph.

read by                      stored as
products                     the chosen scheme, blocks along the inputs, or a scale per output;
                             four-bit floats with the outputs first
Gather (embeddings)          int8, a scale per row
Gather and a product (tied)  int8 once, transposed, a scale per output, which is a token
anything else                as it is
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Final, Literal

from lora_export.core.four_bit_floats import FLOAT4_BLOCK, float4_of
from lora_export.core.quantization import BLOCK_SIZES, BlockSize, Quantized, SchemeName
from lora_export.graph.quantize.weight_reads import Read

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_export.core.parameters import Parameter
    from lora_export.graph.quantize.weight_reads import WeightRead

__all__ = [
    "ALWAYS_KEPT",
    "QuantizeChoice",
    "Scheming",
    "choose_schemes",
    "class_heads",
    "reason_to_keep",
    "without_blocks",
]

DEFAULT_BLOCK: Final = 32
ALWAYS_KEPT: Final = ("*.router.*", "*.gate.weight")
"""Routers of mixtures of experts: they are small, and a rounded one sends tokens elsewhere."""
_SMALLEST: Final = 1024
"""Fewer values than this are not worth a node."""
_MATRIX: Final = 2
_BITS: Final[Mapping[str, Literal[4, 8]]] = {"int4": 4, "int8": 8, "nf4": 4, "fp4": 4}
_PRODUCTS: Final = frozenset({Read.PRODUCT})
_TRANSPOSED: Final = frozenset({Read.TRANSPOSED})
_ROWS: Final = frozenset({Read.ROWS})
_TIED: Final = frozenset({Read.ROWS, Read.TRANSPOSED})


@dataclass(frozen=True)
class QuantizeChoice:
    """The quantization that a user asks for.

    Attributes:
        weights: The scheme of the weights of products.
        block_size: How many inputs share a scale; None for 32 with int4, 64 with four-bit floats,
            and with int8 for one scale per output.
        method: How integers and scales are found; see `lora_export.weights.quantization.methods`.
        keep: Patterns of parameters that stay as they are.
        embeddings: ``int8`` or ``keep``.
        head: The scheme of the layer that gives the logits of tokens, ``keep``, or None for that
            of `weights`. A tied one is int8 or kept.
    """

    weights: SchemeName
    block_size: int | None = None
    method: str = "search"
    keep: tuple[str, ...] = ()
    embeddings: Literal["int8", "keep"] = "int8"
    head: SchemeName | Literal["keep"] | None = None

    @property
    def needs_blocks(self) -> bool:
        """Whether the graph needs the blocks that opset 21 has."""
        return self.weights == "int4" or self.head == "int4" or self.block_size is not None


@dataclass(frozen=True)
class Scheming:
    """The parameters of a graph with their schemes.

    Attributes:
        parameters: All of them, in their order; a tied one is stored transposed now.
        kept: Matrices that stay as they are, with the reason.
    """

    parameters: tuple[Parameter, ...]
    kept: Mapping[str, str] = field(default_factory=dict)


def choose_schemes(
    parameters: Sequence[Parameter],
    reads: Mapping[str, Sequence[WeightRead]],
    choice: QuantizeChoice,
    *,
    heads: Collection[str] = (),
    required: Mapping[str, str] | None = None,
) -> Scheming:
    """Return the parameters, those that are quantized with their scheme.

    Args:
        parameters: The parameters of a float graph.
        reads: The nodes that read each, of both graphs of an encoder-decoder.
        choice: What the user asks for.
        heads: The parameters whose product is the logits of tokens.
        required: Parameters that have to stay as they are, with the reason.
    """
    chosen: list[Parameter] = []
    kept: dict[str, str] = {}
    for parameter in parameters:
        found = _scheme_of(
            parameter, reads.get(parameter.name, ()), choice,
            is_head=parameter.name in heads, required=required or {},
        )  # fmt: skip
        if isinstance(found, str):
            if found:
                kept[parameter.name] = found
            chosen.append(parameter)
        else:
            chosen.append(found)
    return Scheming(tuple(chosen), kept)


def class_heads(labels: Collection[str], parameters: Collection[str]) -> dict[str, str]:
    """Return the parameters of heads that classify, each with the reason to keep it.

    Args:
        labels: The task's parameters with a row for each class.
        parameters: The parameters of the graph.

    >>> class_heads(["classifier.out_proj.weight"], ["classifier.dense.weight", "x.weight"])
    {'classifier.dense.weight': 'it is of the classification head'}
    """
    modules = {name.partition(".")[0] for name in labels}
    return {
        name: "it is of the classification head"
        for name in parameters
        if name.partition(".")[0] in modules
    }


def without_blocks(parameters: Sequence[Parameter]) -> dict[str, str]:
    """Return the weights of products that no block divides, each with the reason.

    They are int8 with a scale per output, whatever the choice. Embeddings have no blocks anyway.
    """
    return {
        each.name: f"no block divides {each.stored_shape[0]} inputs"
        for each in parameters
        if each.quantized is not None
        and each.quantized.block_size == 0
        and each.module_type != "Embedding"
        and each.stored_shape[0] % min(BLOCK_SIZES)
    }


def _scheme_of(
    parameter: Parameter,
    reads: Sequence[WeightRead],
    choice: QuantizeChoice,
    *,
    is_head: bool,
    required: Mapping[str, str],
) -> Parameter | str:
    """Return a parameter with its scheme, or why it stays; ``""`` where nobody would ask."""
    if not parameter.stored_dtype.floating or parameter.is_buffer or len(parameter.shape) < _MATRIX:
        return ""
    kinds = frozenset(each.read for each in reads)
    reason = reason_to_keep(parameter, choice, is_head=is_head, required=required)
    reason = reason or _reason_of_reads(reads, kinds, choice)
    if reason:
        return reason
    turned = replace(parameter, transposed=not parameter.transposed)
    if kinds == _ROWS:
        return replace(parameter, quantized=Quantized(8, 0, axis=0))
    if kinds == _TIED:
        return replace(turned, quantized=Quantized(8, 0, axis=1))
    product = turned if kinds == _TRANSPOSED else parameter
    own = choice.head if is_head and choice.head is not None else choice.weights
    bits = _BITS[own]
    floats = float4_of(own)
    wanted = choice.block_size or (FLOAT4_BLOCK if floats is not None else None)
    block = _block_of(product.stored_shape[0], bits, wanted)
    if block and floats is not None:
        outputs_first = replace(product, transposed=not product.transposed)
        return replace(outputs_first, quantized=Quantized(4, block, axis=1, floats=floats))
    scheme = Quantized(bits, block, axis=0) if block else Quantized(8, 0, axis=1)
    return replace(product, quantized=scheme)


def _reason_of_reads(
    reads: Sequence[WeightRead], kinds: frozenset[Read | None], choice: QuantizeChoice
) -> str:
    """Return why what reads a parameter keeps it as it is; ``""`` where nothing does."""
    if not reads:
        return "no node reads it"
    strange = sorted({each.operator for each in reads if each.read is None})
    if strange:
        return f"it is read by {', '.join(strange)}"
    if kinds == _ROWS:
        return "embeddings are kept" if choice.embeddings == "keep" else ""
    return "" if kinds in {_PRODUCTS, _TRANSPOSED, _TIED} else "it is read in two layouts"


def reason_to_keep(
    parameter: Parameter, choice: QuantizeChoice, *, is_head: bool, required: Mapping[str, str]
) -> str:
    """Return why a parameter stays as it is, whatever reads it; ``""`` where nothing keeps it."""
    if parameter.name in required:
        return required[parameter.name]
    if len(parameter.shape) != _MATRIX:
        return f"it has {len(parameter.shape)} axes"
    if prod(parameter.shape) < _SMALLEST:
        return f"it has {prod(parameter.shape)} values"
    if is_head and choice.head == "keep":
        return "the head is kept"
    for pattern in (*choice.keep, *ALWAYS_KEPT):
        if any(_fits(name, pattern) for name in (parameter.name, *parameter.aliases)):
            return f"it fits {pattern!r}"
    return ""


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern names a parameter or its module, whole or by their end."""
    module = name.removesuffix(".weight")
    return any(
        fnmatch.fnmatchcase(each, form)
        for each in (name, module)
        for form in (pattern, f"*.{pattern}")
    )


def _block_of(width: int, bits: Literal[4, 8], wanted: int | None) -> BlockSize:
    """Return the block size for a width; 0 for one scale per output.

    The largest block that divides the width and is not above the wanted one; four bits without
    blocks would lose too much, so that the caller takes eight where none divides it.
    """
    if wanted is None:
        if bits == _BITS["int8"]:
            return 0
        wanted = DEFAULT_BLOCK
    fitting = [each for each in BLOCK_SIZES if each <= wanted and width % each == 0]
    return max(fitting, default=0)
