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

from lora_export.core.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy.typing as npt

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
        self._prefix = str(getattr(model, "base_model_prefix", "") or "")
        self._owners = {
            _plain(f"{path}."): module
            for path, module in model.named_modules()
            if hasattr(module, "merge") and hasattr(module, "base_layer")
        }
        self._values = {
            _plain(name): value
            for name, value in model.named_parameters(remove_duplicate=False)
            if _ORIGINAL not in name
        }

    def value(self, name: str) -> Array:
        """Return the base's values, which must not be changed.

        Raises:
            UnsupportedError: The model has no such parameter.
        """
        found: Array = self._values[self._known(name)].detach().float().numpy()
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
        if owner is None:
            return None
        rows = _pair(owner, "lora_embedding_A", "lora_embedding_B")
        found = rows or _pair(owner, "lora_A", "lora_B")
        if found is None or any(each.ndim != _MATRIX for each in found):
            return None
        a, b = found
        turned = rows is not None or bool(getattr(owner, "fan_in_fan_out", False))
        left, right = (a.T, b.T) if turned else (b, a)
        fits = (len(left), right.shape[1]) == tuple(self._values[known].shape)
        return (left, right) if fits else None

    def replace(self, name: str, values: Array) -> None:
        """Give a parameter other values of the same shape, in the model's layout.

        Raises:
            UnsupportedError: The model has no such parameter, or one of another shape.
        """
        import torch

        held = self._values[self._known(name)]
        if tuple(held.shape) != values.shape:
            msg = f"the model has {name!r} as {list(held.shape)}, not as {list(values.shape)}"
            raise UnsupportedError(msg)
        held.data.copy_(torch.from_numpy(np.ascontiguousarray(values, np.float32)))

    def merge_all(self) -> None:
        """Merge every update into its weight, as PEFT does."""
        for owner in self._owners.values():
            owner.merge()

    def _known(self, name: str) -> str:
        inner = f"{self._prefix}." if self._prefix else ""
        shorter = name.removeprefix(inner)
        for each in (name, shorter, inner + shorter):
            if each in self._values:
                return each
        msg = f"the model in torch has no parameter {name!r}"
        raise UnsupportedError(msg)

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
