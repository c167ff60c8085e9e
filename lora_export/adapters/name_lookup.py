"""Lookup of an adapter's names among those of a base; see `naming`."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.adapters.attention_modules import IN_PROJECTION
from lora_export.adapters.canonical import LowRank
from lora_export.adapters.fused_layouts import BLOCK_NAMES, FUSED_NAMES, ROLES, rows_of_parts
from lora_export.adapters.wrappers import plainer_names
from lora_export.core.errors import UnsupportedError
from lora_export.core.name_conversions import new_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from lora_export.adapters.canonical import Item
    from lora_export.adapters.resolve import ModelNames
    from lora_export.core.name_conversions import Conversion, NewName
    from lora_export.core.parameters import Parameter

    Index = npt.NDArray[np.int64]

__all__ = ["Lookup", "Place", "Source", "count_outputs"]

_CHUNK: Final = ("chunk:0",)
_CONCATENATE: Final = ("concatenate:0",)
_TRANSPOSE: Final = ("Transpose",)
_RENAMED: Final = ((".mlp.", ".block_sparse_moe."), (".block_sparse_moe.", ".mlp."))
"""Names of one module in checkpoints of model types that are not known."""


@dataclass(frozen=True)
class Source:
    """A tensor of the base, and what transformers' rules make of it."""

    parameter: Parameter
    new: NewName


@dataclass(frozen=True)
class Place:
    """A fused parameter, and which of its rows a part is."""

    parameter: Parameter
    rows: Index


@dataclass(frozen=True)
class Lookup:
    """The names of a base, and the rules by which transformers makes others of them.

    Attributes:
        names: The base's parameters.
        rules: The rules, one sequence for each class that the adapter may have been trained on.
        config: The base's ``config.json``.
        stored: Whether the names are a checkpoint's, to which the rules apply; else a model's.
    """

    names: ModelNames = field(repr=False)
    rules: Sequence[Sequence[Conversion]] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    stored: bool = True

    @functools.cached_property
    def names_made(self) -> dict[str, list[Source]]:
        """The names that the rules make of the base's, and of what."""
        found: dict[str, list[Source]] = {}
        for rules in self.rules if self.stored else ():
            own: dict[str, list[Source]] = {}
            for name in self.names:
                new = new_name(name, rules)
                if new.name == name and new.converter is None:
                    continue
                parameter = self.names.find(name)
                assert parameter is not None  # noqa: S101  (it is one of its names)
                for each in new.names:
                    own.setdefault(each, []).append(Source(parameter, new))
            for name, sources in own.items():
                found.setdefault(name, sources)
        return found

    def path_of(self, item: Item) -> str | None:
        """Return the name of the base's parameter that `item` changes as a whole, if any."""
        path = self.find(item.parameter)
        if path is None and isinstance(item, LowRank) and item.name is None:
            return self.find(f"{item.module}.{IN_PROJECTION}")
        return path

    def find(self, name: str) -> str | None:
        """Return the name under which the base has what is called `name`, if it has it whole."""
        spellings = (name, *plainer_names(name))
        as_it_is = (each for each in spellings if self.names.find(each) is not None)
        converted = (path for each in spellings if (path := self._converted(each)) is not None)
        moved = (
            path
            for old, new in _RENAMED
            if old in name and self.names.find(path := name.replace(old, new)) is not None
        )
        return next(itertools.chain(as_it_is, converted, moved), None)

    def _converted(self, name: str) -> str | None:
        """Return the base's name of which the rules make `name`, or that they make of it."""
        if (stored := self._stored(name)) is not None:
            return stored
        for rules in self.rules:
            new = new_name(name, rules)
            if new.converter is None and new.name != name:
                found = self.names.find(new.name) is not None
                path = new.name if found else self._stored(new.name)
                if path is not None:
                    return path
        return None

    def sources_of(self, name: str) -> list[Source]:
        """Return the base's tensors of which transformers makes `name`."""
        for spelling in (name, *plainer_names(name)):
            for candidate in self.names.candidates(spelling):
                if candidate in self.names_made:
                    return self.names_made[candidate]
        return []

    def _stored(self, name: str) -> str | None:
        sources = self.sources_of(name)
        if len(sources) != 1:
            return None
        converter = sources[0].new.converter
        whole = converter is None or converter.operations == _TRANSPOSE
        return sources[0].parameter.name if whole else None

    def place_of(self, item: Item, source: str) -> Place | None:
        """Return the rows of the base's parameter that `item` changes, if it changes some rows.

        Raises:
            UnsupportedError: The order of the rows is not known.
        """
        for each in self.sources_of(item.parameter):
            rule = each.new.converter
            if rule is not None and rule.operations == _CHUNK:
                return self._chunk(item, each)
        for path in (item.parameter, *plainer_names(item.parameter)):
            found = self._fused_sibling(path)
            if found is not None:
                parameter, fused, role = found
                outputs = count_outputs(parameter, item)
                rows = rows_of_parts(self.config, fused, outputs)
                if rows is None or role not in rows:
                    raise _unknown_order(item.parameter, parameter.name, source)
                return Place(parameter, rows[role])
        return None

    def _chunk(self, item: Item, each: Source) -> Place:
        names = each.new.names
        wanted = {
            candidate
            for spelling in (item.parameter, *plainer_names(item.parameter))
            for candidate in self.names.candidates(spelling)
        }
        at = next(index for index, name in enumerate(names) if name in wanted)
        count = count_outputs(each.parameter, item) // len(names)
        return Place(each.parameter, np.arange(at * count, (at + 1) * count))

    def _fused_sibling(self, path: str) -> tuple[Parameter, str, str] | None:
        """Return the fused parameter beside a part's own path, its name, and the part's role."""
        owner, _, kind = path.rpartition(".")
        parent, _, leaf = owner.rpartition(".")
        role = ROLES.get(leaf)
        if role is None:
            return None
        stem = f"{parent}." if parent else ""
        for fused in FUSED_NAMES:
            name = f"{fused}_{kind}" if fused == "in_proj" else f"{fused}.{kind}"
            parameter = self.names.find(stem + name)
            if parameter is not None and self._has_role(fused, role):
                return parameter, fused, role
        return None

    @staticmethod
    def _has_role(fused: str, role: str) -> bool:
        return role in FUSED_NAMES[fused]

    def pieces_of(self, item: Item, source: str) -> list[tuple[str, Index]]:
        """Return the base's parameters that `item` changes together, each with its rows of it.

        Raises:
            UnsupportedError: The order of the rows is not known, or a rule's operation is not.
        """
        sources = self.sources_of(item.parameter)
        if sources and all(
            each.new.converter is not None and each.new.converter.operations == _CONCATENATE
            for each in sources
        ):
            ordered = sorted(sources, key=lambda each: each.new.source)
            return _consecutive([each.parameter for each in ordered])
        for spelling in (item.parameter, *plainer_names(item.parameter)):
            for rules in self.rules:
                new = new_name(spelling, rules)
                parts = [self.names.find(name) for name in new.names]
                if new.converter is None or None in parts:
                    continue
                if new.converter.operations != _CHUNK:
                    raise self._made_otherwise(item.parameter, new, source)
                return _consecutive([part for part in parts if part is not None])
            if pieces := self._split_siblings(spelling, source):
                return pieces
        if sources:
            raise self._made_otherwise(item.parameter, sources[0].new, source)
        return []

    def _made_otherwise(self, path: str, new: NewName, source: str) -> UnsupportedError:
        operations = new.converter.operations if new.converter else ()
        done = " and ".join(each.partition(":")[0] for each in operations)
        msg = (
            f"adapter {source!r} changes {path!r}, and transformers makes {new.name!r} by {done} "
            "while it loads the base: its update cannot be converted in the same way"
        )
        hint = (
            "Load base and adapter with PEFT under transformers 5 and save both again: "
            "save_pretrained(FOLDER, save_original_format=False) for the base."
        )
        if not self.stored:
            hint = f"Merge it into the checkpoint first, and export that: lora-export merge. {hint}"
        return UnsupportedError(msg, hint=hint)

    def _split_siblings(self, path: str, source: str) -> list[tuple[str, Index]]:
        owner, _, kind = path.rpartition(".")
        parent, _, leaf = owner.rpartition(".")
        if kind.startswith("in_proj_"):
            parent, leaf, kind = owner, "in_proj", kind.removeprefix("in_proj_")
        roles = FUSED_NAMES.get(leaf)
        if roles is None:
            return []
        stem = f"{parent}." if parent else ""
        by_role: dict[str, Parameter] = {}
        for name, role in ROLES.items():
            parameter = self.names.find(f"{stem}{name}.{kind}")
            if parameter is not None and role in roles:
                by_role.setdefault(role, parameter)
        if len(by_role) < len(roles):
            return []
        blocks = leaf in BLOCK_NAMES and (leaf != "qkv_proj" or parent.endswith("self_attn"))
        if not blocks:  # CodeGen's qkv_proj lies in four slices, in an attention called attn
            raise _unknown_order(path, by_role[roles[0]].name, source)
        return _consecutive([by_role[role] for role in roles])


def count_outputs(parameter: Parameter, item: Item) -> int:
    """Return how many outputs a fused parameter has; it is ``[in, out]`` if its first axis says."""
    first, *rest = parameter.shape
    inputs = item.a.shape[1] if isinstance(item, LowRank) and len(item.a.shape) > 1 else None
    return rest[0] if len(rest) == 1 and inputs == first != rest[0] else first


def _consecutive(parameters: Sequence[Parameter]) -> list[tuple[str, Index]]:
    found: list[tuple[str, Index]] = []
    start = 0
    for each in parameters:
        found.append((each.name, np.arange(start, start + each.shape[0])))
        start += each.shape[0]
    return found


def _unknown_order(part: str, other: str, source: str) -> UnsupportedError:
    msg = (
        f"adapter {source!r} changes {part!r}, the base has {other!r}: one of them holds the rows "
        "of q, k and v (or gate and up) in an order that is not known for this model type"
    )
    return UnsupportedError(
        msg,
        hint="Merge the adapter in PEFT into the checkpoint that it was trained on, and convert "
        "the result; please report the model type.",
    )
