"""The quantized weights of an export, counted: schemes, bytes, and what stays in float."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.stored_values import parameters_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.core.manifest import Manifest
    from lora_export.core.parameters import Parameter

__all__ = ["QuantizedGroup", "QuantizedSummary", "quantized_summary"]

_MATRIX: Final = 2


@dataclass(frozen=True)
class QuantizedGroup:
    """Parameters of the base that are stored in one way.

    Attributes:
        scheme: ``int4`` or ``int8``.
        block_size: How many values share a scale; 0 for one scale per output, row or token.
        parameters: How many there are.
        bytes: Their integers and scales.
    """

    scheme: str
    block_size: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class QuantizedSummary:
    """The quantized parameters of the base, and the matrices that stay in float.

    Attributes:
        method: How integers and scales were found.
        groups: The parameters by scheme and block size, the largest first.
        bytes: All integers and scales.
        float_bytes: The bytes of the same parameters in the dtype of the export.
        kept: The matrices that stay in float.
        kept_bytes: Their bytes.
    """

    method: str
    groups: tuple[QuantizedGroup, ...]
    bytes: int
    float_bytes: int
    kept: tuple[str, ...]
    kept_bytes: int


def quantized_summary(manifest: Manifest) -> QuantizedSummary | None:
    """Return what is quantized of the base of an export; None where nothing is."""
    record = manifest.base.quantization
    base = manifest.graphs.get(BASE_GRAPH)
    missing = set(base.missing) if base else set()
    present = [each for each in parameters_of(manifest) if each.name not in missing]
    quantized = [each for each in present if each.quantized is not None]
    if record is None or not quantized:
        return None
    kept = [
        each
        for each in present
        if each.quantized is None
        and each.stored_dtype.floating
        and not each.is_buffer
        and len(each.shape) >= _MATRIX
    ]
    groups = _groups(quantized)
    return QuantizedSummary(
        method=record.method,
        groups=groups,
        bytes=sum(each.bytes for each in groups),
        float_bytes=sum(map(_float_bytes, quantized)),
        kept=tuple(each.name for each in kept),
        kept_bytes=sum(map(_float_bytes, kept)),
    )


def _groups(parameters: Sequence[Parameter]) -> tuple[QuantizedGroup, ...]:
    counted: Counter[tuple[str, int]] = Counter()
    taken: Counter[tuple[str, int]] = Counter()
    for each in parameters:
        form = each.quantized
        if form is not None:
            key = (form.scheme, form.block_size)
            counted[key] += 1
            taken[key] += each.stored_bytes
    return tuple(
        QuantizedGroup(*key, parameters=counted[key], bytes=size)
        for key, size in taken.most_common()
    )


def _float_bytes(parameter: Parameter) -> int:
    return prod(parameter.shape) * parameter.stored_dtype.itemsize_bytes
