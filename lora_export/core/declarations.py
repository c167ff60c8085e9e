"""Declarations of transformers about its model classes, as data: read without torch.

``tools/model_declarations.py`` reads the installed transformers once for all models and writes
``data/declarations.json``; `tests/core/test_declarations.py` compares the two. The file holds

    types        by ``model_type``: the default of ``tie_word_embeddings``, the class of each task
    classes      by class name: ``base_model_prefix``, ``_tied_weights_keys``, the models inside it
    rules        by class name or ``model_type``: how a checkpoint is renamed, stacked and split

A model inside a model ("part", such as the decoder of a vision-language model) has declarations of
its own, which hold below its path. Its class follows from the ``model_type`` of its own section of
the config, where that is not the class's default.

Not covered: remote code, and ties that a class computes from its sizes (`ModelClass.varying`), of
which the file holds those of the default config.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lora_export.core.name_conversions import Conversion
from lora_export.ondevice.file_opening import TABLE_LIMIT_BYTES, read_file

__all__ = [
    "DECLARATIONS",
    "OWN_CONFIG",
    "ModelClass",
    "Part",
    "Tie",
    "class_for_task",
    "class_named",
    "classes_of",
    "conversions_for",
    "covered_version",
    "input_embeddings",
    "text_section",
    "tied_names",
    "ties_of",
    "words_tied",
]

DECLARATIONS: Final = Path(__file__).parent / "data" / "declarations.json"
OWN_CONFIG: Final = "?"
_TIE_KEY: Final = "tie_word_embeddings"
_TASKS: Final = ("FEATURE_EXTRACTION", "CAUSAL_LM")
"""The auto classes that build the models inside a model: ``AutoModel``, ``AutoModelForCausalLM``.
"""


@dataclass(frozen=True)
class Part:
    """A model inside a model.

    Attributes:
        path: The path of its module.
        class_name: Its class in the default config.
        config: The path of its section in the config (``text_config``); ``""`` for the whole,
            `OWN_CONFIG` for a config that the class makes.
    """

    path: str
    class_name: str
    config: str


@dataclass(frozen=True)
class ModelClass:
    """A model class of transformers.

    Attributes:
        name: Its name, as in ``architectures``.
        model_type: The ``model_type`` of its config class.
        prefix: ``base_model_prefix``, without a dot; may be empty.
        ties: ``_tied_weights_keys``, target to source: names of parameters, of modules, or regular
            expressions of either, as they are declared.
        parts: The models inside it, in the order of ``named_modules``: those with a section of the
            config or declarations of their own.
        variants: Other ties by a key of the config: ``(key, value, ties)``.
        varying: Whether the class computes ties from its sizes.
        input: The path of the module of its token embeddings; ``""`` where it has none.
    """

    name: str
    model_type: str
    prefix: str
    ties: Mapping[str, str]
    parts: tuple[Part, ...] = ()
    variants: tuple[tuple[str, object, Mapping[str, str]], ...] = ()
    varying: bool = False
    input: str = ""

    def ties_in(self, config: Mapping[str, Any]) -> Mapping[str, str]:
        """Return `ties` as they are under `config`."""
        for key, value, ties in self.variants:
            if key in config and config[key] == value:
                return ties
        return self.ties


@dataclass(frozen=True)
class Tie:
    """One entry of ``_tied_weights_keys``, of the model or of a model inside it.

    Attributes:
        scope: The path of the model that declares it; ``""`` for the whole.
        target: The parameter, module or pattern that is tied, below `scope`.
        source: What it is tied to, below `scope`.
        holds: Whether the config ties it; None where the model type is unknown.
        section: The path of the section of the config that decides it; ``""`` for the whole.
    """

    scope: str
    target: str
    source: str
    holds: bool | None
    section: str = ""


def covered_version() -> str:
    """Return the version of transformers that the data was read from."""
    return str(_table()["transformers"])


def class_named(name: str) -> ModelClass | None:
    """Return the class of a name; None where transformers has none."""
    return _class(name)


def classes_of(model_type: str) -> tuple[ModelClass, ...]:
    """Return every class of a model type, sorted by name; none for an unknown one."""
    known = _own_type(model_type)
    return tuple(
        found for name in _names_by_type().get(known, ()) if (found := _class(name)) is not None
    )


def class_for_task(model_type: str, task_type: str) -> ModelClass | None:
    """Return the class that transformers' auto class builds for PEFT's task.

    Args:
        model_type: The config's.
        task_type: PEFT's: ``CAUSAL_LM``, ``SEQ_2_SEQ_LM``, ``SEQ_CLS``, ``TOKEN_CLS``,
            ``QUESTION_ANS``, or ``FEATURE_EXTRACTION`` for the bare model.
    """
    row = _table()["types"].get(model_type, {})
    return _class(row.get("tasks", {}).get(task_type, ""))


def words_tied(config: Mapping[str, Any]) -> bool | None:
    """Return the value of ``tie_word_embeddings`` that transformers gives `config`.

    That is the config's own value, the default of its class, the value in the section of its text
    model, or what the class insists on (T5).

    Args:
        config: A ``config.json`` or a section of one.

    Returns:
        None where the model type is unknown.
    """
    row = _table()["types"].get(str(config.get("model_type")))
    if row is None or "tied" not in row:
        return None
    index = _choice(config)
    if "text" in row:
        section = _section(config, row["text"])
        index += 3 * bool(words_tied({"model_type": row["text_type"], **section}))
    return {"T": True, "F": False}.get(row["tied"][index])


def text_section(model_type: str) -> str:
    """Return the path of the text model's section of a config; ``""`` for a type without one."""
    return str(_table()["types"].get(model_type, {}).get("text", ""))


@functools.cache
def input_embeddings() -> frozenset[str]:
    """Return the path of the token embeddings of every class that ties weights."""
    return frozenset(row["input"] for row in _table()["classes"].values() if "input" in row)


@functools.cache
def tied_names() -> frozenset[str]:
    """Return the names, some of them patterns, that classes tie to another."""
    return frozenset(target for row in _table()["ties"] for target in row)


def ties_of(model_class: ModelClass, config: Mapping[str, Any]) -> tuple[Tie, ...]:
    """Return every tie that a class and the models inside it declare, those that do not hold too.

    Args:
        model_class: The class.
        config: The checkpoint's ``config.json``.
    """
    sections = {"": "", **{part.path: part.config for part in model_class.parts}}
    found: list[Tie] = []
    for path, each, own in _models(model_class, config):
        holds = words_tied(own)
        section = sections[path] if sections[path] != OWN_CONFIG else ""
        found += (Tie(path, *pair, holds, section) for pair in each.ties_in(own).items())
    return tuple(found)


def conversions_for(
    model_class: ModelClass | None, config: Mapping[str, Any]
) -> tuple[Conversion, ...]:
    """Return the rules by which transformers loads a checkpoint, in the order it applies them.

    They equal ``graph.trace.conversion_rules.conversions_of`` of the model; see
    ``core/name_conversions.py`` for their meaning.

    Args:
        model_class: The class that is loaded; None for an unknown one, which has those of its
            model type alone.
        config: The checkpoint's ``config.json``.
    """
    if model_class is None:
        model_class = ModelClass("", str(config.get("model_type")), "", {})
    found: list[Conversion] = []
    claimed: defaultdict[str, list[str]] = defaultdict(list)

    def is_claimed(key: str, path: str) -> bool:
        return any(seen == "" or path.startswith(f"{seen}.") for seen in claimed[key])

    for path, each, _ in _models(model_class, config):
        if is_claimed(each.name, path):
            continue
        rules = _rules(each.name)
        key = each.name
        if rules is None:
            key = each.model_type
            if is_claimed(key, path):
                continue
            rules = _rules(key)
        if rules is None:
            continue
        if path:
            scope = path.removeprefix(model_class.prefix).removeprefix(".")
            rules = tuple(replace(rule, scope=scope, prefix=model_class.prefix) for rule in rules)
        found += rules
        claimed[each.name].append(path)
        claimed[key].append(path)
    return (*found, *(_rules("legacy") or ()))


def _models(
    model_class: ModelClass, config: Mapping[str, Any]
) -> list[tuple[str, ModelClass, Mapping[str, Any]]]:
    """Return path, class and config of a model and of those inside it."""
    found: list[tuple[str, ModelClass, Mapping[str, Any]]] = [("", model_class, config)]
    for part in model_class.parts:
        default = _class(part.class_name)
        if default is None:
            continue
        own: Mapping[str, Any] = {"model_type": default.model_type}
        if not part.config:
            own = {"model_type": model_class.model_type, **config}
            default = replace(default, model_type=str(own["model_type"]))
        elif part.config != OWN_CONFIG:
            own = {**own, **_section(config, part.config)}
            default = _as_configured(default, str(own["model_type"]))
        found.append((part.path, default, own))
    return found


def _as_configured(default: ModelClass, model_type: str) -> ModelClass:
    """Return the class that an auto class builds for `model_type` in the place of `default`."""
    if _own_type(model_type) == default.model_type:
        return default
    for task in _TASKS:
        found = class_for_task(model_type, task)
        if found is not None and default == class_for_task(default.model_type, task):
            return found
    return default


def _choice(config: Mapping[str, Any]) -> int:
    """Return 0, 1, 2: the config has no ``tie_word_embeddings``, has it false, has it true."""
    return 0 if _TIE_KEY not in config else 1 + bool(config[_TIE_KEY])


def _section(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Return the section of a config at a dotted path; an empty one where it is missing."""
    section: Any = config
    for name in path.split(".") if path else ():
        section = section.get(name) if isinstance(section, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def _own_type(model_type: str) -> str:
    """Return the model type of the config class that an alias such as ``gpt-sw3`` loads."""
    return str(_table()["aliases"].get(model_type, model_type))


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(read_file(DECLARATIONS, TABLE_LIMIT_BYTES))
    return table


@functools.cache
def _names_by_type() -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, row in sorted(_table()["classes"].items()):
        found[row["type"]].append(name)
    return found


@functools.cache
def _class(name: str) -> ModelClass | None:
    table = _table()
    row = table["classes"].get(name)
    if row is None:
        return None
    return ModelClass(
        name,
        row["type"],
        row.get("prefix", ""),
        table["ties"][row["ties"]] if "ties" in row else {},
        tuple(Part(*part) for part in (table["parts"][row["parts"]] if "parts" in row else ())),
        tuple((key, value, ties) for key, value, ties in row.get("variants", ())),
        row.get("varying", False),
        row.get("input", ""),
    )


@functools.cache
def _rules(key: str) -> tuple[Conversion, ...] | None:
    table = _table()
    indices = table["rules"].get(key)
    if indices is None:
        return None
    rows = (table["conversions"][index] for index in indices)
    return tuple(Conversion(row[0], tuple(row[1]), tuple(row[2])) for row in rows)
