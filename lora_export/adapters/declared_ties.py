"""The names of a checkpoint that are one weight, by transformers' declarations and the files.

    1. The classes that the checkpoint is for: by the adapter's task where it classifies, the
       config's ``architectures``, the class that PEFT recorded, the task; else every class of the
       model type.
    2. Their ties, where the config ties words (`core.declarations`).
    3. What is stored: transformers does not tie what a checkpoint holds with different values.

A model type that transformers does not know (remote code) has no declarations. There a change of
what looks like a token embedding or an output embedding is refused, unless the config or the stored
values say that it is not tied.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.canonical import Computed, LowRank, Rows, Saved
from lora_export.adapters.ties import TieGroup, with_names
from lora_export.adapters.vocabulary import EMBEDDINGS
from lora_export.core.declarations import (
    ModelClass,
    Tie,
    class_for_task,
    class_named,
    classes_of,
    conversions_for,
    covered_version,
    text_section,
    ties_of,
    words_tied,
)
from lora_export.core.errors import UnsupportedError
from lora_export.core.name_conversions import new_name
from lora_export.core.tensors import same_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lora_export.adapters.canonical import Adapter, Item
    from lora_export.core.json_file import JsonObject
    from lora_export.core.tensors import Tensor

__all__ = ["DeclaredTies", "classes_for", "declared_ties", "tying_sections", "untied_config"]

_CLASSIFIERS: Final = frozenset({"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
_TIE_KEY: Final = "tie_word_embeddings"
_PLAIN: Final = re.compile(r"[\w.]+")
_SCALED: Final = frozenset({"switch_transformers"})
"""Model types whose forward scales the states where the config ties words."""

_LAYER: Final = re.compile(r"\.\d+\.")
_MATRIX: Final = 2


@dataclass(frozen=True)
class DeclaredTies:
    """The tied weights of a checkpoint.

    Attributes:
        groups: By the names under which the checkpoint holds them, or would hold them.
        sections: The sections of the config that decide them.
        bare: Whether the checkpoint lacks the name of the bare model, which the class with a head
            puts before it.
    """

    groups: tuple[TieGroup, ...] = ()
    sections: frozenset[str] = field(default_factory=frozenset)
    bare: bool = False


def classes_for(config: Mapping[str, Any], adapter: Adapter) -> tuple[ModelClass, ...]:
    """Return the classes that the merged checkpoint may be loaded as; none for an unknown type."""
    model_type = str(config.get("model_type"))
    known = classes_of(model_type)
    task = adapter.task_type or ""
    if task in _CLASSIFIERS and (found := class_for_task(model_type, task)):
        return (found,)
    listed = config.get("architectures")
    recorded = adapter.config.get("auto_mapping")
    names = [
        *(listed if isinstance(listed, list) else ())[:1],
        recorded.get("base_model_class") if isinstance(recorded, Mapping) else None,
    ]
    named = [each for name in names if (each := class_named(str(name))) is not None]
    candidates = [each for each in named if each in known]
    if (by_task := class_for_task(model_type, task)) is not None:
        candidates.append(by_task)
    # a checkpoint of the bare model is loaded as the class with the head that was trained
    bare = class_for_task(model_type, "FEATURE_EXTRACTION")
    candidates = [each for each in candidates if each != bare] or candidates
    tying = [each for each in candidates if each.ties or each.parts]
    return tuple((tying or candidates)[:1]) or known


def declared_ties(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    adapter: Adapter,
    *,
    prefix: str,
) -> tuple[Adapter, DeclaredTies]:
    """Return the tied weights of a checkpoint, and the adapter with their names as it has them.

    Args:
        tensors: The checkpoint's, by their own names.
        config: Its ``config.json``.
        adapter: The adapter, named as the checkpoint is stored where that is known.
        prefix: ``base_model_prefix`` with its dot, or ``""``.

    Raises:
        UnsupportedError: The adapter changes what may be tied, and nothing shows whether it is.
    """
    classes = classes_for(config, adapter)
    if not classes:
        _refuse_unknown(tensors, config, adapter, prefix)
        return adapter, DeclaredTies()
    names = _Names(tensors, config, classes, prefix)
    sources: dict[str, str] = {}
    sections: set[str] = set()
    for each in classes:
        for tie in _holding(each, config):
            scope = f"{tie.scope}." if tie.scope else ""
            if not _is_plain(tie):
                _refuse_pattern(adapter, names, scope, (tie.target, tie.source))
                continue
            for target, source in names.expanded(scope + tie.target, scope + tie.source):
                sources[target] = sources.get(source, source)
                sections.add(tie.section)
    # PEFT looks for ties only where the outermost class declares some: T5's classifiers do not
    inputs = {
        f"{each.input}.weight"
        for each in classes
        if (each.ties_in(config) or each.varying) and words_tied(config)
    }
    members: defaultdict[str, list[str]] = defaultdict(list)
    for target, source in sources.items():
        members[source].append(target)
    adapter = names.renamed(adapter, {*sources, *sources.values()})
    touched = {item.parameter for item in adapter.items}
    groups = [
        group
        for source, targets in members.items()
        if (group := _group(tensors, names, (source, *targets), inputs, touched)) is not None
    ]
    bare = any(names.written(each) == each.removeprefix(prefix) != each for each in members)
    return adapter, DeclaredTies(tuple(groups), frozenset(sections), bare)


def tying_sections(classes: Iterable[ModelClass], config: Mapping[str, Any]) -> frozenset[str]:
    """Return the sections of a config by which classes tie single weights; ``""`` for the whole."""
    ties = (tie for each in classes for tie in _holding(each, config))
    return frozenset(tie.section for tie in ties if _is_plain(tie))


def untied_config(config: Mapping[str, Any], sections: Iterable[str]) -> JsonObject:
    """Return the config with ``tie_word_embeddings: false`` in every section that tied words.

    Where a class ties whatever its config says (T5), or reads more from the key than the tie, the
    config stays: transformers 5 does not tie what is stored with different values.
    """
    table = dict(config)
    for section in sections:
        own = _section(config, section)
        model_type = str(own.get("model_type", config.get("model_type")))
        inner = text_section(model_type)
        paths = [section, *([f"{section}.{inner}".strip(".")] if inner else [])]
        changed = dict(table)
        for path in paths:
            changed = _with_key(changed, path.split(".") if path else [])
        after = {"model_type": model_type, **_section(changed, section)}
        if words_tied(after) is not True and model_type not in _SCALED:
            table = changed
    return table


def _holding(model_class: ModelClass, config: Mapping[str, Any]) -> Iterator[Tie]:
    """Yield the ties of a class that hold, or that nothing in the config denies."""
    for tie in ties_of(model_class, config):
        if tie.holds or (tie.holds is None and not _is_untied(config, tie.section)):
            yield tie


def _is_plain(tie: Tie) -> bool:
    """Return whether a tie names one weight or module, rather than a pattern of them."""
    return bool(_PLAIN.fullmatch(tie.target) and _PLAIN.fullmatch(tie.source))


def _is_untied(config: Mapping[str, Any], section: str) -> bool:
    return _section(config, section).get(_TIE_KEY) is False


def _section(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    section: Any = config
    for name in path.split(".") if path else ():
        section = section.get(name) if isinstance(section, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def _with_key(config: Mapping[str, Any], path: list[str]) -> JsonObject:
    if not path:
        return {**config, _TIE_KEY: False}
    inner = config.get(path[0])
    if not isinstance(inner, Mapping):
        return dict(config)
    return {**config, path[0]: _with_key(inner, path[1:])}


def _group(
    tensors: Mapping[str, Tensor],
    names: _Names,
    members: tuple[str, ...],
    inputs: set[str],
    touched: set[str],
) -> TieGroup | None:
    """Return the group of `members` in stored names, the source first; None where nothing is tied.

    PEFT takes names for tied whose declared source is the module of the input embedding, whatever
    they hold.
    """
    written = list(dict.fromkeys(map(names.written, members)))
    embedding = next((names.written(each) for each in members if each in inputs), None)
    held = [name for name in written if name in tensors]
    if not held:
        return None
    apart: set[str] = set()
    if touched.intersection(written):
        first = tensors[held[0]]
        apart = {name for name in held[1:] if not same_values(first, tensors[name])}
        written = [name for name in written if name not in apart]
        held = [name for name in held if name not in apart]
    if embedding not in written:
        embedding, apart = None, set()
    if len(written) == 1 and not (apart and embedding):
        return None
    return TieGroup(tuple(written), tuple(held), embedding, tuple(sorted(apart)))


def _refuse_pattern(adapter: Adapter, names: _Names, scope: str, patterns: tuple[str, str]) -> None:
    """Refuse a change of what is tied by a pattern of names: which to which is not worked out."""
    for item in adapter.items:
        for pattern in patterns:
            if names.matching(item.parameter, re.escape(scope) + pattern.removeprefix("^")):
                msg = (
                    f"adapter {adapter.source!r} changes {item.parameter!r}, which transformers "
                    f"ties by the pattern {pattern!r}: merging it would change other modules too"
                )
                raise UnsupportedError(
                    msg, hint="Leave it out (--drop), or merge with PEFT and save without the tie."
                )


class _Names:
    """The names of a checkpoint, by those that a model gives its tensors."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, Any],
        classes: tuple[ModelClass, ...],
        prefix: str,
    ) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self._rules = conversions_for(classes[0], config)
        self._stored: dict[str, str] | None = None

    def written(self, name: str) -> str:
        """Return the stored name of the model's `name`; itself where it is not stored."""
        for candidate in self._candidates(name):
            if candidate in self._tensors:
                return candidate
        if self._stored is None:
            self._stored = {
                new_name(each, self._rules).name: each
                for each in self._tensors
                if ".experts." not in each
            }
        for candidate in self._candidates(name):
            if candidate in self._stored:
                return self._stored[candidate]
        return name

    def expanded(self, target: str, source: str) -> Iterator[tuple[str, str]]:
        """Yield the pairs of parameters of a tie: itself, or all below tied modules."""
        if source.endswith((".weight", ".bias")):
            yield target, source
            return
        self.written(source)
        for name in self._stored or ():
            for candidate in self._candidates(name):
                if candidate.startswith(f"{source}."):
                    yield target + candidate.removeprefix(source), candidate

    def matching(self, name: str, pattern: str) -> bool:
        """Whether a parameter that an adapter calls `name` is one of a pattern of the model's."""
        model = new_name(name, self._rules).name
        return any(re.match(pattern, each) for each in self._candidates(model))

    def renamed(self, adapter: Adapter, tied: set[str]) -> Adapter:
        """Return the adapter with the items of tied parameters under their stored names."""
        stored = {each: self.written(each) for each in tied}

        def of(name: str) -> str:
            for form in (name, new_name(name, self._rules).name):
                for candidate in self._candidates(form):
                    if candidate in stored:
                        return stored[candidate]
                    if candidate in stored.values():
                        return candidate
            return name

        return with_names(adapter, {item.parameter: of(item.parameter) for item in adapter.items})

    def _candidates(self, name: str) -> tuple[str, ...]:
        if not self._prefix:
            return (name,)
        if name.startswith(self._prefix):
            return (name, name.removeprefix(self._prefix))
        return (name, self._prefix + name)


def _refuse_unknown(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], adapter: Adapter, prefix: str
) -> None:
    """Refuse a change of what may be tied, where the model type has no declarations."""
    if any(_is_untied(config, section) for section in ("", "text_config")):
        return
    rows = {_section(config, section).get("vocab_size") for section in ("", "text_config")}

    def by_token(name: str, shape: tuple[int, ...]) -> bool:
        if len(shape) != _MATRIX or _LAYER.search(f".{name}"):
            return False
        module = name.rpartition(".")[0].rpartition(".")[2]
        return shape[0] in rows or (rows == {None} and module in EMBEDDINGS)

    for item in adapter.items:
        shape = _weight_shape(item)
        if not by_token(item.parameter, shape):
            continue
        forms = (item.parameter, item.parameter.removeprefix(prefix), prefix + item.parameter)
        own = next((name for name in forms if name in tensors), None)
        alike = [
            name
            for name, tensor in tensors.items()
            if name != own and tensor.shape[1:] == shape[1:] and by_token(name, tensor.shape)
        ]
        if own is None:
            known = not alike
        elif alike:
            known = not any(same_values(tensors[own], tensors[name]) for name in alike)
        else:
            known = isinstance(item, Rows) or (isinstance(item, Saved) and item.in_place)
        if not known:
            _refuse(item, config, adapter)


def _refuse(item: Item, config: Mapping[str, Any], adapter: Adapter) -> None:
    msg = (
        f"adapter {adapter.source!r} changes {item.parameter!r}, which may be tied to another "
        f"weight: transformers {covered_version()} has no model type {config.get('model_type')!r}, "
        "and neither the base's config nor its tensors show whether it is"
    )
    raise UnsupportedError(
        msg,
        hint="If the model keeps token embedding and output embedding apart, say so in the base's "
        "config.json (tie_word_embeddings: false). If it ties them, save the base with a tensor "
        "for each and that setting, and merge into it.",
    )


def _weight_shape(item: Item) -> tuple[int, ...]:
    """Return the shape of the weight that an item changes; () where the item does not tell."""
    if isinstance(item, LowRank):
        shape = (item.b.shape[0], *item.a.shape[1:])
        return shape[::-1] if item.embedding else shape
    if isinstance(item, Computed):
        return tuple(size for size in (item.outputs, item.inputs) if size is not None)
    return () if isinstance(item, Rows) and not item.tensor.shape else item.tensor.shape
