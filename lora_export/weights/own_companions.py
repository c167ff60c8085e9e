"""The files that come with an adapter: tokenizer, chat template, generation settings.

An adapter's folder often holds the tokenizer that it was trained with. What differs from the base's
belongs to the adapter, in groups:

- A tokenizer is taken whole, its chat template included: a ``tokenizer.json`` of one and a
  ``tokenizer_config.json`` of another would not fit. Files of the base's that the adapter's
  tokenizer does not have are hidden. Files of a tokenizer without its vocabulary are not taken.
- A chat template is taken alone where no tokenizer comes with it.
- Generation settings and those of processors are taken file by file.
- The modules of sentence-transformers are taken as they are, together.

``config.json`` is none of them: see `lora_export.weights.label_names` and `special_tokens`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lora_export.core.errors import AdapterError
from lora_export.weights.companion_files import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    MODULES,
    SENTENCE,
    SETTINGS,
    TEMPLATES,
    TOKENIZER,
    VOCABULARIES,
    adapter_folder,
    companion_files,
    read_content,
    same_content,
)
from lora_export.weights.pooling_source import pooling_of, sentence_files
from lora_export.weights.special_tokens import ids_of, read_table, special_ids, with_special_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.weights.companion_files import Content
    from lora_export.weights.special_tokens import Ids

    _C = TypeVar("_C", Path, Content)

__all__ = ["OwnCompanions", "own_companions"]

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_PROCESSOR_TEMPLATE: Final = "chat_template.json"


@dataclass(frozen=True)
class OwnCompanions:
    """The companions of an adapter that are not the base's.

    Attributes:
        files: Each file that differs, by its name below the folder: a path, or its content.
        hidden: Names of the base's files that do not hold for the adapter.
        tokens: Special tokens whose ids the adapter changes in ``config.json``.
        taken: What this is, in words.
        config: The adapter's own ``config.json``, of which labels are read; empty without one.
        notes: What the user should know.
    """

    files: Mapping[str, Content] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    tokens: Ids = field(default_factory=dict)
    taken: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def over(self, base: Mapping[str, Path]) -> dict[str, Content]:
        """Return all companions of the adapter: the base's, with its own in their place."""
        kept = {name: path for name, path in base.items() if name not in self.hidden}
        return {**kept, **self.files}


@dataclass(frozen=True)
class _Choice:
    """One group of one adapter: the files that differ, and the base's that do not hold."""

    adapter: str
    files: Mapping[str, Content]
    hidden: frozenset[str] = frozenset()


def own_companions(
    adapters: Sequence[Adapter],
    base: Mapping[str, Path],
    *,
    preferred: str | None = None,
    rows: int | None = None,
) -> OwnCompanions:
    """Return the companions of adapters that differ from the base's.

    Args:
        adapters: The adapter, or those that one was combined of.
        base: The base's companions by name.
        preferred: The one of several whose companions count, whatever the others have.
        rows: How many tokens the adapter's vocabulary has, where it changes that of the base.

    Raises:
        AdapterError: Several bring something different; or a file is too large or damaged.
    """
    if preferred is not None:
        adapters = [each for each in adapters if each.name == preferred]
    held = {
        each.name: {**companion_files(folder), **_modules_above(each)}
        for each in adapters
        if (folder := adapter_folder(each)) is not None
    }
    files: dict[str, Content] = {}
    hidden: set[str] = set()
    notes: list[str] = []
    for what, choose in _GROUPS.items():
        choices = [
            choice
            for name, own in held.items()
            if (choice := choose(name, own, base, notes)) is not None
        ]
        if choices:
            chosen = _agreed(what, choices)
            files |= chosen.files
            hidden |= chosen.hidden
    for name in files:
        if name.endswith(".json") and name != MODULES:
            read_table(files, name)  # required to be a table
    configs = [read_table(own, CONFIG) for own in held.values() if CONFIG in own]
    tokens = _within(_tokens(files, hidden, base), rows or _rows(base), notes)
    generation = read_table(base, GENERATION_CONFIG)
    if GENERATION_CONFIG not in files and generation:
        aligned = with_special_tokens(generation, tokens, generation=True)
        if aligned != generation:
            files[GENERATION_CONFIG] = (json.dumps(aligned, indent=2) + "\n").encode()
    said = {json.dumps(each.get("id2label"), sort_keys=True) for each in configs}
    return OwnCompanions(
        dict(sorted(files.items())), frozenset(hidden), tokens, _in_words(files, hidden, base),
        configs[0] if len(said) == 1 else {}, tuple(notes),
    )  # fmt: skip


def _agreed(what: str, choices: Sequence[_Choice]) -> _Choice:
    """Return the companions that all adapters with files of a group share."""
    first = choices[0]
    for other in choices[1:]:
        differing = set(first.files) ^ set(other.files) or {
            name
            for name in first.files
            if not same_content(name, first.files[name], other.files[name])
        }
        if differing or first.hidden != other.hidden:
            name = min(differing) if differing else min(first.hidden ^ other.hidden)
            msg = f"adapters {first.adapter!r} and {other.adapter!r} differ in {what}: {name!r}"
            raise AdapterError(
                msg,
                hint=f"Choose one: --head-from {first.adapter} takes its head, labels and "
                "tokenizer.",
            )
    return first


def _differing(own: Mapping[str, Content], base: Mapping[str, Path]) -> dict[str, Content]:
    return {
        name: path
        for name, path in own.items()
        if name not in base or not same_content(name, path, base[name])
    }


def _tokenizer(
    adapter: str, own: Mapping[str, Content], base: Mapping[str, Path], notes: list[str]
) -> _Choice | None:
    """Choose an adapter's tokenizer with its chat template, or the template alone."""
    tokenizer = _only(own, TOKENIZER.__contains__)
    templates = _only(own, TEMPLATES.fullmatch)
    if not any(name in tokenizer for name in VOCABULARIES):
        return _template(adapter, tokenizer, templates, base, notes)
    brought = {**tokenizer, **templates}
    files = _differing(brought, base)
    if not files:
        return _Choice(adapter, {})
    rest = {*_only(base, TOKENIZER.__contains__), *_only(base, TEMPLATES.fullmatch)} - set(brought)
    if not templates and not read_table(tokenizer, _TOKENIZER_CONFIG).get("chat_template"):
        rest.discard(_PROCESSOR_TEMPLATE)
    return _Choice(adapter, files, frozenset(rest))


def _template(
    adapter: str,
    tokenizer: Mapping[str, Content],
    templates: Mapping[str, Content],
    base: Mapping[str, Path],
    notes: list[str],
) -> _Choice | None:
    """Choose the chat template of a folder that has no vocabulary."""
    found: dict[str, Content] = dict(_differing(templates, base))
    left = sorted(_differing(tokenizer, base))
    text = read_table(tokenizer, _TOKENIZER_CONFIG).get("chat_template")
    if not templates and isinstance(text, str) and text != _template_of(base):
        found[CHAT_TEMPLATE] = text.encode()
    if left:
        notes.append(
            f"adapter {adapter!r} has {', '.join(left)} but no vocabulary file: the base's "
            "tokenizer is kept"
        )
    if not found and not templates:
        return None
    rest = set(_only(base, TEMPLATES.fullmatch)) - {*templates, *found} if found else set()
    return _Choice(adapter, found, frozenset(rest))


def _setting(
    name: str,
) -> Callable[[str, Mapping[str, Content], Mapping[str, Path], list[str]], _Choice | None]:
    def choose(
        adapter: str, own: Mapping[str, Content], base: Mapping[str, Path], _: list[str]
    ) -> _Choice | None:
        return _Choice(adapter, _differing({name: own[name]}, base)) if name in own else None

    return choose


def _modules_above(adapter: Adapter) -> dict[str, Content]:
    """Return the modules that lie one folder above an adapter."""
    pooling = pooling_of(adapter)
    return sentence_files(pooling) if pooling is not None and pooling.inner else {}


def _modules(
    adapter: str, own: Mapping[str, Content], base: Mapping[str, Path], _: list[str]
) -> _Choice | None:
    """Choose the modules of sentence-transformers."""
    modules = _only(own, SENTENCE.fullmatch)
    if not modules:
        return None
    files = _differing(modules, base)
    rest = set(_only(base, SENTENCE.fullmatch)) - set(modules) if files else set()
    return _Choice(adapter, files, frozenset(rest))


_GROUPS: Final[
    dict[
        str, Callable[[str, Mapping[str, Content], Mapping[str, Path], list[str]], _Choice | None]
    ]
] = {
    "the tokenizer": _tokenizer,
    **{name: _setting(name) for name in SETTINGS},
    "the modules of sentence-transformers": _modules,
}  # fmt: skip


def _only(files: Mapping[str, _C], wanted: Callable[[str], object]) -> dict[str, _C]:
    return {name: path for name, path in files.items() if wanted(name)}


def _tokens(files: Mapping[str, Content], hidden: Iterable[str], base: Mapping[str, Path]) -> Ids:
    """Return the special tokens that the adapter sets differently from the base."""
    whole = OwnCompanions(files, frozenset(hidden)).over(base)
    found: dict[str, int | list[int]] = {}
    if GENERATION_CONFIG in files:
        own = read_table(files, GENERATION_CONFIG)
        before = {**read_table(base, CONFIG), **read_table(base, GENERATION_CONFIG)}
        for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
            said = ids_of(own.get(key))
            if said is not None and said != before.get(key):
                found[key] = said
    if any(name in TOKENIZER for name in files):
        old = special_ids(base)
        found |= {key: each for key, each in special_ids(whole).items() if old.get(key) != each}
    return found


def _rows(base: Mapping[str, Path]) -> int | None:
    """Return the number of tokens in the base's config."""
    config = read_table(base, CONFIG)
    text = config.get("text_config")
    size = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return size if isinstance(size, int) else None


def _within(tokens: Ids, rows: int | None, notes: list[str]) -> Ids:
    """Return the special tokens for which the model has rows."""
    kept: dict[str, int | list[int]] = {}
    for key, value in tokens.items():
        ids = value if isinstance(value, list) else [value]
        if rows is not None and any(each >= rows for each in ids):
            notes.append(
                f"{key} {value} is outside the model's vocabulary of {rows} tokens: the "
                "configs keep the base's value"
            )
        else:
            kept[key] = value
    return kept


def _template_of(files: Mapping[str, Content]) -> str | None:
    """Return the chat template that a tokenizer in a folder of `files` has."""
    source = files.get(CHAT_TEMPLATE)
    if source is not None:
        return read_content(source).decode("utf-8", "replace")
    text = read_table(files, _TOKENIZER_CONFIG).get("chat_template")
    return text if text is None or isinstance(text, str) else json.dumps(text)


def _in_words(
    files: Mapping[str, Content], hidden: Iterable[str], base: Mapping[str, Path]
) -> tuple[str, ...]:
    """Return the kinds of files: ``tokenizer``, ``chat template``, ``generation_config.json``."""
    words = ["tokenizer"] if any(name in TOKENIZER for name in files) else []
    whole = OwnCompanions(files, frozenset(hidden)).over(base)
    others = any(TEMPLATES.fullmatch(name) for name in files)
    if _template_of(whole) != _template_of(base) or others:
        words.append("chat template")
    if any(SENTENCE.fullmatch(name) for name in files):
        words.append("sentence-transformers modules")
    return (*words, *(name for name in SETTINGS if name in files))
