"""The parameters of a traced graph, separated from their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from lora_export.core.computed_parameters import COMPUTED
from lora_export.core.parameters import Parameter
from lora_export.core.torch_private import own_parameters
from lora_export.graph.trace.transformers_private import initialize_module, keys_left_out

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["detach_parameters", "parameters_of"]

_WRAPPED: Final = "model."
"""The prefix that the exporter puts before the model's own names."""


def detach_parameters(graph: ir.Model, model: Any, *, first_names: bool) -> tuple[Parameter, ...]:
    """Take the values of parameters out of the graph and describe them; mutates `graph`.

    Initializers that are not in the model's state (constants that were lifted) keep their values.
    With `first_names`, a tied parameter has the first of its names, else the one that tracing met:
    two graphs of one model then agree.
    """
    state = model.state_dict(keep_vars=True)
    names_of: dict[int, list[str]] = {}
    for name, value in state.items():
        names_of.setdefault(id(value), []).append(name)
    found: list[Parameter] = []
    for value in list(graph.graph.initializers.values()):
        name = (value.name or "").removeprefix(_WRAPPED)
        if name not in state:
            continue
        graph.graph.initializers.pop(value.name or "")
        name = names_of[id(state[name])][0] if first_names else name
        value.name = name
        value.const_value = None
        graph.graph.initializers.add(value)
        found.append(_describe(name, tuple(names_of[id(state[name])]), state[name], model))
    return tuple(sorted(found, key=lambda parameter: parameter.name))


def parameters_of(model: Any) -> tuple[Parameter, ...]:
    """Return every parameter of a model that is not traced yet, a tied one once; no buffers."""
    names_of: dict[int, list[str]] = {}
    held: dict[int, Any] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, torch.nn.Parameter):
            names_of.setdefault(id(value), []).append(name)
            held[id(value)] = value
    return tuple(
        Parameter(
            name=names[0],
            shape=tuple(held[key].shape),
            dtype=str(held[key].dtype).removeprefix("torch."),
            module_type="",
            aliases=tuple(names[1:]),
        )
        for key, names in names_of.items()
    )


def _describe(name: str, names: tuple[str, ...], value: Any, model: Any) -> Parameter:
    is_parameter = isinstance(value, torch.nn.Parameter)
    owner = model.get_submodule(name.rpartition(".")[0])
    return Parameter(
        name=name,
        shape=tuple(value.shape),
        dtype=str(value.dtype).removeprefix("torch."),
        module_type=_module_type(owner) if is_parameter else "buffer",
        aliases=tuple(alias for alias in names if alias != name),
        computed=_computed(name, value, model),
    )


def _computed(name: str, value: Any, model: Any) -> str | None:
    """Return the kind of a parameter that transformers does not save, if it is a known one.

    The module is initialized as transformers does when a checkpoint lacks it, and the values are
    compared.
    """
    if name not in keys_left_out(model):
        return None
    owner, attribute = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    table = own_parameters(owner)
    own = torch.nn.Parameter(torch.zeros(value.shape, dtype=torch.float32), requires_grad=False)
    before, table[attribute] = table[attribute], own
    try:
        initialize_module(model, owner)
    finally:
        table[attribute] = before
    shape = tuple(value.shape)
    found = own.numpy()
    return next(
        (kind for kind, values in COMPUTED.items() if np.array_equal(values(shape), found)), None
    )


def _module_type(module: torch.nn.Module) -> str:
    """Return the most basic class that tells how a weight is laid out, else the class itself."""
    for kind in (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d):
        if isinstance(module, kind):
            return kind.__name__
    return type(module).__name__
