"""``modules_to_save`` of a PEFT config, checked against the tensors of the adapter.

PEFT keeps a copy of every module whose path ends with one of the names (``str.endswith``: ``dense``
means ``classifier.dense`` and every other), and saves the copies with the adapter. Two things go
wrong, and PEFT can load neither file:

    ["classifier", "dense"]     a copy within a copy: what was trained is in neither of the two
    ["embed_tokens"]            and the file has no such tensor: what was trained is lost, as after
                                the conversion of a PiSSA adapter, which keeps low-rank factors only

The first holds for trained token rows too (``trainable_token_indices``) of an embedding in a copy.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.wrappers import unwrap
from lora_export.core.errors import AdapterError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lora_export.adapters.canonical import Adapter

__all__ = ["require_brought", "require_separate"]

_COPIES: Final = re.compile(
    r"\.(?:modules_to_save(?:\.default)?|original_module|token_adapter|base_layer)(?=\.)"
)
"""Parts that PEFT's copies and layers add to the path of a parameter."""

_ROWS: Final = "trainable_tokens_delta"

_ALTERNATIVES: Final = frozenset({"classifier", "score"})
"""Heads that PEFT lists for every classifier, whichever of them the model has."""


def require_separate(keys: Iterable[str], config: Mapping[str, Any], source: str) -> None:
    """Require that no saved module, and no embedding with trained rows, lies within another.

    Args:
        keys: The keys of the adapter's tensors.
        config: The adapter's config.
        source: The adapter, for messages.

    Raises:
        UnsupportedError: One does.
    """
    names = _names_of(config)
    for key in keys if names else ():
        parameter = _COPIES.sub("", unwrap(key))
        modules = list(_saved_modules(parameter, names))
        module, _, leaf = parameter.rpartition(".")
        if leaf == _ROWS and modules and modules[-1] != module:
            modules.append(module)
        if len(modules) > 1:
            msg = (
                f"adapter {source!r} saves {modules[1]!r} within {modules[0]!r}: its config says "
                f"modules_to_save: {sorted(names)}"
            )
            raise UnsupportedError(
                msg,
                hint="PEFT trains a copy of the inner module that it neither saves nor loads as it "
                "was. Train again with the outer module alone.",
            )


def require_brought(adapter: Adapter, parameters: Iterable[str]) -> None:
    """Require that a PEFT adapter brings the modules that its config saves.

    A name that no module of the base has is left alone: PEFT lists names of heads by task.

    Args:
        adapter: The adapter, with the names of its own file.
        parameters: The names of the base's parameters.

    Raises:
        AdapterError: It lacks some that the base has.
    """
    names = _names_of(adapter.config) if adapter.format == "peft" and not adapter.renamed else ()
    brought = _present(names, (each.parameter for each in adapter.saved))
    lacking = [name for name in names if name not in brought]
    if brought & _ALTERNATIVES:
        lacking = [name for name in lacking if name not in _ALTERNATIVES]
    if not lacking:
        return
    known = _present(lacking, parameters)
    if absent := [name for name in lacking if name in known]:
        msg = (
            f"adapter {adapter.source!r} has no tensor of {absent[0]!r}, which its config lists "
            "in modules_to_save"
        )
        raise AdapterError(
            msg,
            hint="Its training is lost, and PEFT cannot load this file. Save the adapter again; "
            "if the module was not trained, take the name out of adapter_config.json.",
        )


def _names_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(each for each in config.get("modules_to_save") or () if each)


def _present(names: Iterable[str], parameters: Iterable[str]) -> set[str]:
    """Return the names that mean a module of one of the parameters."""
    wanted = tuple(names)
    found: set[str] = set()
    for parameter in parameters if wanted else ():
        for module in _modules(parameter):
            found.update(name for name in wanted if _means(name, module))
    return found


def _means(name: str, module: str) -> bool:
    """Whether a name means a module, whose path may lack the model's own name."""
    return module.endswith(name) or ("." in module and name.endswith(f".{module}"))


def _saved_modules(parameter: str, names: tuple[str, ...]) -> Iterator[str]:
    """Yield the modules around a parameter that a name means, the outermost first."""
    return (module for module in _modules(parameter) if names and module.endswith(names))


def _modules(parameter: str) -> Iterator[str]:
    """Yield the paths of the modules that a parameter is in, the outermost first.

    >>> list(_modules("classifier.dense.weight"))
    ['classifier', 'classifier.dense']
    """
    parts = parameter.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))
