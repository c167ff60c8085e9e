"""The weights of a reference: read with the adapter merged by PEFT, or replaced by others.

    value(name)        the base's
    merged(name)       with the adapter's update, as PEFT merges it; the base's stays
    factors(name)      two matrices whose product spans what a low-rank update changes
    replace(name, …)   other values, as those that integers stand for
    merge_all()        every update becomes part of the base's weights

Names are those of the model, with or without its bare model's name before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import by_name, to_float32
from lora_export.core.errors import UnsupportedError
from lora_export.core.tensors import MemoryTensor, read_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from lora_export.core.parameters import Parameter
    from lora_export.runtime.reference import Reference

    Array = npt.NDArray[Any]

__all__ = ["ReferenceWeights"]

_WRAPPER: Final = "base_model.model."
_INNER: Final = (".base_layer.", ".token_adapter.")
_SAVED: Final = ".modules_to_save."
_ORIGINAL: Final = ".original_module."
_MATRIX: Final = 2


class ReferenceWeights:
    """The weights of one reference.

    Args:
        reference: The model; what is replaced stays so until it is closed.
    """

    def __init__(self, reference: Reference) -> None:
        model = reference.whole
        self._after = reference.after_model
        self._prefix = str(getattr(model, "base_model_prefix", "") or "")
        self._owners = {
            _plain(f"{path}."): module
            for path, module in model.named_modules()
            if hasattr(module, "merge") and hasattr(module, "base_layer")
        }
        self._places = {
            _plain(f"{path}.{name}" if path else name): (module, name)
            for path, module in model.named_modules(remove_duplicate=False)
            for name, value in module.named_parameters(recurse=False)
            if _ORIGINAL not in f"{path}." and value is not None
        }

    def value(self, name: str) -> Array:
        """Return the base's values, which must not be changed.

        Raises:
            UnsupportedError: The model has no such parameter.
        """
        known = self._known(name)
        if known not in self._places:
            return to_float32(read_all(self._after[known]))
        found: Array = self._held(known).detach().float().numpy()
        return found

    def merged(self, name: str) -> Array:
        """Return the values with the adapter's update, as PEFT merges it, float32.

        Raises:
            UnsupportedError: The model has no such parameter.
        """
        known = self._known(name)
        owner = self._owner_of(known)
        if owner is None:
            return self.value(name)
        before = {key: each.detach().clone() for key, each in owner.base_layer.named_parameters()}
        owner.merge()
        found = np.array(self.value(name))
        owner.unmerge()
        for key, each in owner.base_layer.named_parameters():
            each.data.copy_(before[key])
        return found

    def names_of(self, parameter: Parameter) -> list[str]:
        """Return the names of a parameter that the model has: its own, and of those tied to it."""
        return [parameter.name, *(each for each in parameter.aliases if self._find(each))]

    def known_names(self, names: Iterable[str]) -> frozenset[str]:
        """Return the model's own names of parameters; those that it does not have are left out."""
        return frozenset(found for each in names if (found := self._find(each)) is not None)

    def has_update(self, name: str) -> bool:
        """Return whether the adapter has an update of a parameter that can be left out."""
        return self._owner_of(self._known(name)) is not None

    def factors(self, name: str) -> tuple[Array, Array] | None:
        """Return L and R, ``[rows, r]`` and ``[r, columns]``, whose product spans the update.

        They are in the layout of the parameter, without the scale. None where there is no low-rank
        update, or it is none of two matrices.
        """
        known = self._known(name)
        owner = self._owner_of(known)
        if owner is None or known not in self._places:
            return None
        rows = _pair(owner, "lora_embedding_A", "lora_embedding_B")
        found = rows or _pair(owner, "lora_A", "lora_B")
        if found is None or any(each.ndim != _MATRIX for each in found):
            return None
        a, b = found
        turned = rows is not None or bool(getattr(owner, "fan_in_fan_out", False))
        left, right = (a.T, b.T) if turned else (b, a)
        fits = (len(left), right.shape[1]) == tuple(self._held(known).shape)
        return (left, right) if fits else None

    def replace(self, name: str, values: Array) -> None:
        """Give a parameter other values of the same shape, in the model's layout.

        A weight that is tied to it keeps its own.

        Raises:
            UnsupportedError: The model has no such parameter, or one of another shape.
        """
        import torch

        known, held = self._known(name), self.value(name)
        if held.shape != values.shape:
            msg = f"the model has {name!r} as {list(held.shape)}, not as {list(values.shape)}"
            raise UnsupportedError(msg)
        if known not in self._places:
            dense = np.ascontiguousarray(values, np.float32)
            self._after[known] = MemoryTensor(known, by_name("float32"), dense)
            return
        module, leaf = self._places[known]
        own = torch.tensor(np.ascontiguousarray(values, np.float32))
        setattr(module, leaf, torch.nn.Parameter(own, requires_grad=False))

    def merge_all(self) -> None:
        """Merge every update into its weight, as PEFT does; a weight that is tied to it stays."""
        import torch

        for owner in self._owners.values():
            for leaf, value in list(owner.base_layer.named_parameters(recurse=False)):
                own = torch.nn.Parameter(value.detach().clone(), requires_grad=False)
                setattr(owner.base_layer, leaf, own)
            owner.merge()

    def _held(self, known: str) -> Any:
        module, leaf = self._places[known]
        return getattr(module, leaf)

    def _find(self, name: str) -> str | None:
        inner = f"{self._prefix}." if self._prefix else ""
        shorter = name.removeprefix(inner)
        candidates = (name, shorter, inner + shorter)
        return next((e for e in candidates if e in self._places or e in self._after), None)

    def _known(self, name: str) -> str:
        if (found := self._find(name)) is None:
            msg = f"the model in torch has no parameter {name!r}"
            raise UnsupportedError(msg)
        return found

    def _owner_of(self, known: str) -> Any:
        """Return PEFT's layer around the module of a parameter; None where there is none."""
        return self._owners.get(known.rpartition(".")[0] + ".")


def _plain(name: str) -> str:
    """Return a name without what PEFT's wrappers add to it."""
    name = name.removeprefix(_WRAPPER)
    for inner in _INNER:
        name = name.replace(inner, ".")
    before, saved, after = name.partition(_SAVED)
    return f"{before}.{after.partition('.')[2]}" if saved else name


def _pair(owner: Any, first: str, second: str) -> tuple[Array, Array] | None:
    """Return the two factors of the only adapter of a layer."""
    found = []
    for key in (first, second):
        held = list(getattr(owner, key, {}).values())
        if len(held) != 1:
            return None
        value = getattr(held[0], "weight", held[0])
        found.append(value.detach().float().numpy())
    return found[0], found[1]
