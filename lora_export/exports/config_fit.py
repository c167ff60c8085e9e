"""Whether the sizes in a config are those of the checkpoint's tensors, before a graph is traced.

Tracing takes seconds to minutes. The model that is about to be traced has every parameter with its
shape, and the headers of the checkpoint have the shapes of its tensors: where one disagrees, config
and weights are not of one model. Whatever the headers leave open, the graph decides.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lora_export.adapters.resolve import ModelNames
from lora_export.core.errors import CheckpointError, UnsupportedError
from lora_export.core.listing import first_few
from lora_export.weights.converted import as_loaded

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.name_conversions import Conversion
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = ["misfit_of", "names_in", "refuse_misfits", "require_sizes_of_config"]

_SHOWN: Final = 5
_LAYER: Final = re.compile(r"(.*?\.)(\d+)\.")


def require_sizes_of_config(
    parameters: Sequence[Parameter],
    prefix: str,
    conversions: Sequence[Conversion],
    *,
    tensors: Mapping[str, Tensor],
    resizable: frozenset[str],
    adapters: Sequence[Adapter],
) -> None:
    """Require that the parameters of a model have the shapes of a checkpoint's tensors.

    Args:
        parameters: See `lora_export.graph.spec.template.Requirement`, as of `prefix` and
            `conversions`.
        prefix: See there.
        conversions: See there.
        tensors: The checkpoint's, unread.
        resizable: Parameters that may have another shape: the head's.
        adapters: Those that go into the model, which may bring what the checkpoint lacks.

    Raises:
        CheckpointError: A tensor has another shape, or the config has more layers; up to five
            are named, with both shapes.
    """
    names = ModelNames(parameters, prefix)
    try:
        tensors = as_loaded(tensors, conversions, lambda name: names.find(name) is not None)
    except UnsupportedError:
        return  # of a parameter that the graph may not read
    misfits: list[str] = []
    absent: list[Parameter] = []
    present: set[str] = set()
    for parameter in parameters:
        found = names_in(tensors, parameter, names)
        if not found:
            absent.append(parameter)
            continue
        present.add(parameter.name)
        tensor = tensors[found[0]]
        if tensor.shape != parameter.shape and parameter.name not in resizable:
            misfits.append(misfit_of(parameter, tensor, found[0]))
    brought = any(adapter.saved or adapter.complete for adapter in adapters)
    if not brought:
        misfits += _layers_beyond(absent, present)
    refuse_misfits(misfits)


def _layers_beyond(absent: Sequence[Parameter], present: Collection[str]) -> list[str]:
    """Return the parameters of layers of which a checkpoint has none, but has earlier ones."""
    depths: dict[str, int] = {}
    for name in present:
        if layer := _LAYER.match(name):
            depths[layer[1]] = max(depths.get(layer[1], 0), int(layer[2]))
    return [
        f"{each.name}: the checkpoint has none, its config means {list(each.shape)}"
        for each in absent
        if (layer := _LAYER.match(each.name)) and layer[1] in depths
        and int(layer[2]) > depths[layer[1]]
    ]  # fmt: skip


def names_in(tensors: Mapping[str, Tensor], parameter: Parameter, names: ModelNames) -> list[str]:
    """Return the names that a parameter, or one that is tied to it, has among tensors."""
    known = (
        candidate
        for name in (parameter.name, *parameter.aliases)
        for candidate in names.candidates(name)
    )
    return [name for name in dict.fromkeys(known) if name in tensors]


def misfit_of(parameter: Parameter, tensor: Tensor, found: str) -> str:
    """Return both shapes of a parameter, for `refuse_misfits`."""
    return (
        f"{found}: the checkpoint has {list(tensor.shape)}, "
        f"its config means {list(parameter.shape)}"
    )


def refuse_misfits(misfits: Sequence[str]) -> None:
    """Raise where there are misfits.

    Raises:
        CheckpointError: Up to five are named.
    """
    if misfits:
        msg = f"{len(misfits)} tensor(s) do not fit the config:"
        raise CheckpointError(
            msg, items=first_few(misfits, _SHOWN), hint="Config and weights are not of one model."
        )
