"""Renaming, stacking and splitting by which transformers loads a checkpoint, as data.

Hub checkpoints keep the names that they were published with; transformers 5 renames their tensors,
stacks some and splits others to what its model holds. `graph/trace/conversion_rules.py` reads these
rules off the model as it is traced; here they are applied, without torch. In order:

    1. every renaming, one after the other, each to what the one before made of the name;
    2. the first converter that matches, if any: its tensor becomes a part, or several.

A rule of a module inside the model (`scope`) sees the names below it, without the path to it.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.patterns import REPEATED, ways

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Conversion", "NewName", "new_name"]

_GROUP: Final = re.compile(r"g\d+")
_PATTERN_LIMIT: Final = 8192
_NAME_LIMIT: Final = 512
_WAYS_LIMIT: Final = 32 * REPEATED**2


@dataclass(frozen=True)
class Conversion:
    r"""One rule.

    Attributes:
        pattern: A regular expression with one group ``g<i>`` for the i-th source.
        targets: What replaces the match; ``\1`` is the group inside that of the source. A rule that
            splits has several.
        operations: What is done to the tensors, in order (``stack:0``, ``concatenate:1``,
            ``chunk:0``); a renaming has none. One that is not known here has transformers' name.
        scope: The path of the module that it belongs to; None for the whole model.
        prefix: ``base_model_prefix``, which names below `scope` may have or lack.
    """

    pattern: str
    targets: tuple[str, ...]
    operations: tuple[str, ...] = ()
    scope: str | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a pattern that cannot be one."""
        if len(self.pattern) > _PATTERN_LIMIT or ways(self.pattern) > _WAYS_LIMIT:
            msg = f"{self.pattern[:80]!r} could take forever to match"
            raise ValueError(msg)
        try:
            compiled = _compiled(self.pattern)
        except re.error as error:
            msg = f"{self.pattern!r} is not a regular expression: {error}"
            raise ValueError(msg) from error
        if not self.targets or not any(map(_GROUP.fullmatch, compiled.groupindex)):
            msg = f"{self.pattern!r} has no sources or no targets"
            raise ValueError(msg)

    def apply(self, name: str) -> tuple[str, int] | None:
        """Return the converted `name`, and the source that it matched; None where none did."""
        path = self._path_to_scope(name)
        if path is None:
            return None
        inner = name.removeprefix(path)
        if len(inner) > _NAME_LIMIT:
            return None
        found = _compiled(self.pattern).search(inner)
        if found is None:
            return None
        group = next(
            key for key, text in found.groupdict().items() if text is not None and key[0] == "g"
        )
        target = self.targets[0]
        if r"\1" in target:
            nested = found.re.groupindex[group] + 1
            target = target.replace(
                r"\1", (found[nested] or "") if nested <= found.re.groups else ""
            )
        return path + inner.replace(found[0], target, 1), int(group[1:])

    def _path_to_scope(self, name: str) -> str | None:
        """Return the part before the names that the rule sees; None for a name outside."""
        if self.scope is None:
            return ""
        scope = f"{self.scope}." if self.scope else ""
        prefix = f"{self.prefix}." if self.prefix else ""
        for path in (prefix + scope, scope):
            if name.startswith(path):
                return path
        return None


@dataclass(frozen=True)
class NewName:
    """A converted name.

    Attributes:
        name: The new one; of a split tensor that of its first part.
        converter: The rule that does more than rename, if one matched.
        source: Which of its sources matched.
    """

    name: str
    converter: Conversion | None = None
    source: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all that a rule with several targets makes."""
        if self.converter is None:
            return (self.name,)
        first, *others = self.converter.targets
        before, _, after = self.name.partition(first)
        return (self.name, *(f"{before}{other}{after}" for other in others))


def new_name(name: str, conversions: Iterable[Conversion]) -> NewName:
    """Return the model's name for the checkpoint's tensor `name`."""
    rules = tuple(conversions)
    for rule in rules:
        if not rule.operations and (found := rule.apply(name)):
            name = found[0]
    for rule in rules:
        if rule.operations and (found := rule.apply(name)):
            return NewName(found[0], rule, found[1])
    return NewName(name)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
