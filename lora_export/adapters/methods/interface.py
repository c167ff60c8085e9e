"""A method of fine-tuning, and one module of an adapter as a method reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.adapters.canonical import Transform
from lora_export.core.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lora_export.adapters.canonical import Item
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = [
    "TO_LORA",
    "AdaptedModule",
    "Method",
    "in_outputs_first",
    "inputs_misfit",
    "matrix_misfit",
    "rows_of",
]

_MATRIX: Final = 2

TO_LORA: Final = (
    "Make a LoRA of it first: lora-export adapter convert ADAPTER --to peft --base BASE "
    "--as-rank 16 -o LORA"
)
"""The next step where only updates of LoRA will do."""


@dataclass(frozen=True)
class AdaptedModule:
    """One module's part of an adapter.

    Attributes:
        path: The module's path in the adapter's model.
        tensors: Its tensors by their names in PEFT's layer (``hada_w1_a``).
        shared: The tensors that all modules share (``vera_A``).
        config: The adapter's config, the types of its settings checked.
        source: The adapter, for messages.
        every: The tensors of all modules, by path.
    """

    path: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    shared: Mapping[str, Tensor] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    source: str
    every: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)

    def setting(self, name: str, default: Any) -> Any:
        """Return a setting of the config, or PEFT's default where it is absent or null."""
        value = self.config.get(name)
        return default if value is None else value

    def require(self, *names: str) -> tuple[Tensor, ...]:
        """Return tensors by name.

        Raises:
            AdapterError: One is missing.
        """
        missing = [name for name in names if name not in self.tensors]
        if missing:
            raise self.error(f"{missing[0]} is missing", "The file is damaged: copy it again.")
        return tuple(self.tensors[name] for name in names)

    def require_only(self, *names: str) -> None:
        """Require that the module has no other tensors.

        Raises:
            AdapterError: It has one.
        """
        others = sorted(set(self.tensors) - set(names))
        if others:
            raise self.error(f"{others[0]} does not go with {', '.join(names)}")

    def error(self, what: str, hint: str | None = None) -> AdapterError:
        """Return the error for a module whose config and tensors contradict each other."""
        msg = f"module {self.path!r} of adapter {self.source!r}: {what}"
        return AdapterError(msg, hint=hint or "Config and tensors are not of the same adapter.")

    def shapes_error(self, *names: str) -> AdapterError:
        """Return the error for tensors whose shapes do not go together."""
        shapes = " and ".join(f"{name} {list(self.tensors[name].shape)}" for name in names)
        return self.error(f"{shapes} do not fit together")


@dataclass(frozen=True)
class Method:
    """A method, and how an adapter of it is read.

    Attributes:
        title: What it is called in texts.
        names: The names of a module's tensors; those with a dot are inside a module of their own
            (``oft_R.weight``).
        read: Returns what it does to a module.
        shared: The names of the tensors that all modules share.
        prefix: Where PEFT merges: how the names of its tensors begin, instead of `names` and
            `shared`.
    """

    title: str
    names: frozenset[str]
    read: Callable[[AdaptedModule], Iterable[Item]] = field(repr=False)
    shared: frozenset[str] = frozenset()
    prefix: str | None = None

    @property
    def by_peft(self) -> bool:
        """Whether the merge is PEFT's, and needs torch."""
        return self.prefix is not None


def matrix_misfit(
    outputs: int, inputs: int, *, conv1d: bool = True
) -> Callable[[Parameter], str | None]:
    """Return how a weight fails to be one of `outputs` rows and `inputs` columns.

    The axes of a convolution's kernel count as inputs.

    Args:
        outputs: The update's outputs.
        inputs: The update's inputs.
        conv1d: Whether PEFT's layer takes GPT-2's ``Conv1D``.
    """

    def misfit(parameter: Parameter) -> str | None:
        shape = parameter.shape
        if parameter.module_type == "Conv1D":
            if not conv1d:
                return "the module is a Conv1D, which PEFT does not adapt by this method"
            shape = shape[::-1]
        if len(shape) < _MATRIX or (shape[0], prod(shape[1:])) != (outputs, inputs):
            return f"the update is {[outputs, inputs]}, the weight {list(parameter.shape)}"
        return None

    return misfit


def inputs_misfit(inputs: int, *, multiple: bool = False) -> Callable[[Parameter], str | None]:
    """Return how a weight fails to have `inputs` columns, the kernel's axes included.

    Args:
        inputs: The inputs that the update has.
        multiple: Whether any multiple of them is accepted: the update is repeated.
    """

    def misfit(parameter: Parameter) -> str | None:
        shape = parameter.shape
        if parameter.module_type == "Conv1D":
            return "the module is a Conv1D, which PEFT does not adapt by this method"
        columns = prod(shape[1:])
        fits = columns % inputs == 0 if multiple else columns == inputs
        if len(shape) < _MATRIX or not fits:
            return f"the update has {inputs} inputs, the weight is {list(shape)}"
        return None

    return misfit


def in_outputs_first(parameter: Parameter, transform: Transform) -> Transform:
    """Return a transform of weights ``[out, in]`` for the layout of `parameter`.

    GPT-2's ``Conv1D`` holds ``[in, out]``: its weight is turned as a whole.
    """
    if parameter.module_type != "Conv1D":
        return transform

    def apply(weight: Float32Array, _: int) -> Float32Array:
        return np.ascontiguousarray(transform.apply(np.ascontiguousarray(weight.T), 0).T)

    return Transform(apply, by_rows=False)


def rows_of(parameter: Parameter, delta: Callable[[int, int], Float32Array]) -> Transform:
    """Return the transform ``W0 + ΔW`` of an update whose rows are computed one by one.

    Args:
        parameter: The weight.
        delta: Returns the rows of ΔW from the first argument up to the second, as a matrix
            ``[n, in · kernel]``.
    """

    def apply(rows: Float32Array, start: int) -> Float32Array:
        added = delta(start, start + len(rows))
        added += rows.reshape(added.shape)
        return added.reshape(rows.shape)

    return in_outputs_first(parameter, Transform(apply))
