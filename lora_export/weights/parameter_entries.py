"""The entries of a weight file that a parameter becomes: its values, or integers and scales.

Most exports are not quantized: what quantizes, and what reads the integers of a quantized base, is
imported for a parameter that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor
    from lora_export.weights.quantized_entries import Moments
    from lora_export.weights.stream import Entry

__all__ = ["carried_entries", "count_carried", "entries_of"]


def entries_of(
    parameter: Parameter,
    value: Callable[[Parameter], Entry],
    *,
    method: str,
    moments: Moments | None = None,
) -> list[Entry]:
    """Return what is written of a parameter: its values, or its integers and scales.

    Args:
        parameter: The parameter, with its scheme where it is quantized.
        value: Returns the entry of its values, in the dtype of the parameter that it is given.
        method: A name of `lora_export.weights.quantization.methods.METHODS`.
        moments: Returns Σ xᵀ x of what a parameter is multiplied with, or None, for a method that
            needs it; a parameter of which nothing is known is rounded to nearest.
    """
    if parameter.quantized is None:
        return [value(parameter)]
    from lora_export.weights.quantized_entries import quantized_entries

    return quantized_entries(parameter, parameter.quantized, value, method=method, moments=moments)


def carried_entries(parameter: Parameter, source: Tensor) -> list[Entry] | None:
    """Return the integers and scales that the base stores in the form of `parameter`, unchanged.

    None where it stores others. Their layout is the one that `entries_of` gives.

    Args:
        parameter: The parameter, with its scheme.
        source: The tensor of the base.

    Raises:
        InputError: The dtype of the export cannot hold the scales.
    """
    if parameter.quantized is None:
        return None
    from lora_export.weights.quantized_entries import unchanged_entries

    return unchanged_entries(parameter, parameter.quantized, source)


def count_carried(parameters: Iterable[Parameter], sources: Mapping[str, Tensor]) -> int:
    """Return how many parameters keep the integers, or the codes, that the base stores."""
    quantized = [each for each in parameters if each.quantized is not None]
    if not quantized:
        return 0
    from lora_export.weights.quantized.carried import carried_integers
    from lora_export.weights.quantized.carried_codes import carried_codes

    found = ((sources[each.name], each) for each in quantized if each.name in sources)
    return sum(
        any(carry(source, each) is not None for carry in (carried_integers, carried_codes))
        for source, each in found
    )
