"""The modules that a PEFT config targets, and the tensors of modules that it does not.

PEFT adds its layers where the config says so, and then loads the file into them; a tensor of any
other module is dropped with a warning. The model that PEFT makes of such an adapter lacks that
update, so the adapter is refused here, by name.

The rules are those of ``check_target_module_exists`` (PEFT 0.21, ``tuners/tuners_utils.py``):

    exclude_modules         a list of suffixes, or an expression that matches the whole path
    modules_to_save         a module inside one of these gets no layers
    target_modules          as ``exclude_modules``
    layers_to_transform     the first number in the path is the layer (``layers_pattern`` names the
                            part before it); only where ``target_modules`` is a list, and not for a
                            module that it names by its whole path

They are left undecided, and nothing is refused, where ``target_modules`` is missing or
``all-linear``, and for a ``layers_pattern`` that could take very long to match. An expression that
takes longer than `lora_export.core.bounded_match.LIMIT_S` is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.bounded_match import matches, slow_match
from lora_export.core.errors import AdapterError
from lora_export.core.listing import first_names
from lora_export.core.patterns import WAYS_LIMIT, PatternError, are_affordable, compiled, ways

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

__all__ = ["require_targeted", "target_rule"]

_ALL_LINEAR: Final = "all-linear"
_PATTERN_LIMIT: Final = 2048
_LAYER: Final = re.compile(r"\.(\d+)(?=\.)")
_ROOT: Final = "model."


def require_targeted(modules: Iterable[str], config: Mapping[str, Any], source: str) -> None:
    """Require that the config targets every module that has low-rank factors.

    Args:
        modules: The modules' paths in the adapter's model.
        config: The adapter's config.
        source: The adapter, for messages.

    Raises:
        AdapterError: It does not target some of them; up to three are named.
    """
    modules = tuple(modules)
    targets = target_rule(config, source, modules)
    if targets is None:
        return
    strange = [module for module in modules if not targets(module)]
    if config.get("ensure_weight_tying"):  # PEFT adds the other side of a tie itself
        strange = [module for module in strange if _LAYER.search(module)]
    if not strange:
        return
    msg = (
        f"adapter {source!r} holds updates of {len(strange)} module(s) that its config does not "
        f"target: {first_names(strange)}; it says {_settings(config)}"
    )
    raise AdapterError(
        msg,
        hint="PEFT leaves such tensors out. Use the adapter_config.json that was saved with this "
        "file; if the modules were trained, add them to its target_modules.",
    )


def target_rule(
    config: Mapping[str, Any], source: str, modules: Collection[str] = ()
) -> Callable[[str], bool] | None:
    """Return whether a module is targeted, as a function of its path; None where it is undecided.

    Args:
        config: The adapter's config, the types of its settings checked.
        source: The adapter, for messages.
        modules: The paths that will be asked about.

    Raises:
        AdapterError: A setting is not a regular expression.
    """
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets.lower() == _ALL_LINEAR:
        return None
    if targets is None:
        if not config.get("target_parameters"):
            return None  # PEFT has a table by model type
        targets = []
    match = matches if are_affordable(_expressions(config), modules) else slow_match
    included = _matcher(targets, "target_modules", source, match)
    excluded = _matcher(config.get("exclude_modules") or [], "exclude_modules", source, match)
    saved = config.get("modules_to_save") or ()
    named = frozenset(() if isinstance(targets, str) else targets)
    in_layers = _layer_rule(config, source) if not isinstance(targets, str) else _everywhere

    def is_targeted(module: str) -> bool:
        if any(f".{name}." in f".{module}." for name in saved):
            return False
        paths = _paths(module)
        if excluded(module) or not any(map(included, paths)):
            return False
        return in_layers(module) or not named.isdisjoint(paths)

    return is_targeted


def _expressions(config: Mapping[str, Any]) -> list[str]:
    """Return the settings that are regular expressions, those that are refused later left out."""
    named = [config.get("target_modules"), config.get("exclude_modules")]
    layers = config.get("layers_pattern") or []
    named += [layers] if isinstance(layers, str) else layers
    return [each for each in named if isinstance(each, str) and ways(each) <= WAYS_LIMIT]


def _paths(module: str) -> tuple[str, ...]:
    """Return the paths that a setting may mean: a file may lack the model's own name."""
    return module, _ROOT + module, module.removeprefix(_ROOT)


def _everywhere(_: str) -> bool:
    return True


def _matcher(
    setting: str | Sequence[str], name: str, source: str, match: Callable[[str, str], bool]
) -> Callable[[str], bool]:
    """Return how PEFT matches a list of suffixes or an expression."""
    if isinstance(setting, str):

        def is_matched(path: str) -> bool:
            try:
                return match(setting, path)
            except PatternError as error:
                msg = f"{name} of adapter {source!r} is {setting[:60]!r}, which cannot be used"
                hint = "Write it as a list of plain module names in adapter_config.json."
                raise AdapterError(f"{msg}: {error}", hint=hint) from error

        return is_matched
    exact = frozenset(setting)
    return lambda path: any(path[start:] in exact for start in _starts(path))


def _starts(path: str) -> Iterator[int]:
    """Yield where the parts of a path begin."""
    yield 0
    yield from (at + 1 for at, letter in enumerate(path) if letter == ".")


def _compiled(pattern: str, name: str, source: str) -> re.Pattern[str] | None:
    """Return a stranger's expression; None where it could take too long to match."""
    if len(pattern) > _PATTERN_LIMIT or ways(pattern) > WAYS_LIMIT:
        return None
    try:
        return compiled(pattern)
    except PatternError as error:
        msg = f"{name} of adapter {source!r} is {pattern[:60]!r}, not a regular expression: {error}"
        raise AdapterError(msg, hint="The adapter's config is damaged.") from error


def _layer_rule(config: Mapping[str, Any], source: str) -> Callable[[str], bool]:
    """Return whether a module is in one of the layers that ``layers_to_transform`` names."""
    setting = config.get("layers_to_transform")
    if setting is None or setting == []:
        return _everywhere
    layers = setting if isinstance(setting, list) else [setting]
    named = config.get("layers_pattern") or []
    patterns = [
        _compiled(rf"(?:^|.*?\.){each}\.(?P<index>\d+)\.", "layers_pattern", source)
        for each in ([named] if isinstance(named, str) else named)
    ]

    def in_layers(module: str) -> bool:
        if None in patterns:
            return True
        found = _layers_of(module, [each for each in patterns if each is not None])
        return not found.isdisjoint(layers)

    return in_layers


def _layers_of(module: str, patterns: Sequence[re.Pattern[str]]) -> set[int]:
    """Return the layer that a module is in.

    Without patterns these are two where numbers nest (``layers.1.experts.0``): PEFT takes the first
    number since 0.19 and took the last one before.
    """
    if patterns:
        found = next((m for each in patterns if (m := each.match(module))), None)
        return set() if found is None else {int(found["index"])}
    numbers = [int(each) for each in _LAYER.findall(module)]
    return {numbers[0], numbers[-1]} if numbers else set()


def _settings(config: Mapping[str, Any]) -> str:
    """Return the settings that decide, as the config has them, cut to a line."""
    names = ("target_modules", "exclude_modules", "layers_to_transform", "modules_to_save")
    given = [f"{name}: {config[name]}" for name in names if config.get(name) not in (None, [])]
    text = ", ".join(given) or "target_modules: []"
    return text if len(text) <= 200 else f"{text[:199]}…"  # noqa: PLR2004
