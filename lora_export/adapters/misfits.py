"""Shapes of an adapter's tensors that do not fit the parameter that they are for."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from lora_export.adapters.canonical import Computed, LowRank, Rows, Saved

if TYPE_CHECKING:
    from lora_export.adapters.canonical import Item
    from lora_export.core.parameters import Parameter

__all__ = ["header_misfit", "misfit_of"]


def misfit_of(parameter: Parameter, item: Item, resizable: frozenset[str]) -> str | None:
    """Return how the tensors fail to fit `parameter`, or None."""
    if isinstance(item, LowRank):
        return _low_rank_misfit(parameter, item)
    if isinstance(item, Computed):
        return item.misfit(parameter)
    shape = item.tensor.shape
    if isinstance(item, Rows):
        fits = shape == (len(item.indices), *parameter.shape[1:])
        if fits and item.indices and item.indices[-1] >= parameter.shape[0]:
            return f"row {item.indices[-1]} is replaced, the model has {parameter.shape[0]}"
    else:
        same_rest = shape[1:] == parameter.shape[1:] and len(shape) == len(parameter.shape) > 0
        resized = isinstance(item, Saved) and parameter.name in resizable and same_rest
        fits = shape == parameter.shape or resized
    return None if fits else f"the adapter has {list(shape)}, the model {list(parameter.shape)}"


def header_misfit(parameter: Parameter, item: Computed, *, conv1d: bool) -> str | None:
    """Return how a computed update fails to fit a parameter of which only the header is known.

    Args:
        parameter: The parameter, its module unknown.
        item: The update.
        conv1d: Whether the module may be a ``Conv1D``.
    """
    if item.embedding:
        return item.misfit(replace(parameter, module_type="Embedding"))
    misfit = item.misfit(parameter)
    if misfit is None or not conv1d:
        return misfit
    return misfit if item.misfit(replace(parameter, module_type="Conv1D")) else None


def _low_rank_misfit(parameter: Parameter, update: LowRank) -> str | None:
    out_features, in_axes = update.b.shape[0], update.a.shape[1:]
    input_first = update.input_first(parameter)
    delta = (*in_axes, out_features) if input_first else (out_features, *in_axes)
    if update.name is not None and (update.experts > 1 or parameter.shape == (1, *delta)):
        delta = (update.experts, *delta)
    if delta != parameter.shape:
        return f"the update is {list(delta)}, the weight {list(parameter.shape)}"
    if update.name is None and update.embedding != (parameter.module_type == "Embedding"):
        return f"the module is a {parameter.module_type}"
    if update.magnitude is not None and prod(update.magnitude.shape) != out_features:
        return f"the magnitude is {list(update.magnitude.shape)}, the outputs are {out_features}"
    return None
