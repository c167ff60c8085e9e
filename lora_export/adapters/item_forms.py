"""An adapter's items in the form that they have once the weights are known."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Final

from lora_export.adapters.canonical import Computed, LowRank
from lora_export.adapters.misfits import misfit_of
from lora_export.core.tensors import ComposedTensor, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.adapters.canonical import Adapter, Item
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = ["fitted", "present_items", "with_kernel"]

_MATRIX: Final = 2


def present_items(
    adapter: Adapter, find: Callable[[str], Parameter | None]
) -> tuple[list[Item], list[Parameter]]:
    """Return the items of `adapter` without those that a base without the parameter has no use for.

    The second value has the parameters that a method other than LoRA computes.

    Args:
        adapter: The adapter.
        find: Returns the parameter that a name means.
    """
    known = {each.parameter: find(each.parameter) for each in adapter.computed}
    items = [
        item
        for item in adapter.items
        if not (isinstance(item, Computed) and item.optional and known[item.parameter] is None)
    ]
    return items, [parameter for parameter in known.values() if parameter is not None]


def fitted(
    item: Item, parameter: Parameter, every: Sequence[Parameter], resizable: frozenset[str]
) -> tuple[Item, list[str]]:
    """Return what an item is to the parameter that it changes, and how it fails to fit it, if so.

    A computed update that is a product becomes a low-rank one. One of matrices for a convolution
    gets the axes of its kernel.

    Args:
        item: The item.
        parameter: The parameter.
        every: The parameters of all modules that a method other than LoRA changes.
        resizable: Parameters whose first axis an adapter may change.
    """
    own = with_kernel(item, parameter) if isinstance(item, LowRank) else item
    if (misfit := misfit_of(parameter, own, resizable)) is not None:
        return own, [f"{item.parameter}: {misfit}"]
    if isinstance(own, Computed) and own.product is not None:
        return own.product(parameter, every), []
    return own, []


def with_kernel(item: LowRank, parameter: Parameter) -> LowRank:
    """Return an update of matrices with the axes of the convolution that it is for.

    AdaLoRA stores ``A [r, in · kernel]`` and ``B [out, r]`` for a weight ``[out, in, …]``.
    """
    if not item.flat or len(parameter.shape) <= _MATRIX:
        return item
    inputs, *kernel = parameter.shape[1:]
    rank, columns = item.a.shape
    if columns != prod(parameter.shape[1:]):
        return item
    a = _shaped(item.a, (rank, inputs, *kernel))
    b = _shaped(item.b, (*item.b.shape, *(1 for _ in kernel)))
    return replace(item, a=a, b=b, flat=False)


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    sources = getattr(tensor, "sources", (tensor,))
    return ComposedTensor(
        tensor.name, tensor.dtype, shape, sources, lambda: read_all(tensor).reshape(shape)
    )
