"""The parameter that each of PEFT's nested wrappers adapts (`target_parameters`).

A wrapper around ``mlp.experts`` is saved without the name of its parameter; a second one wraps the
first, whose keys get ``.base_layer``. They are nested in the order in which the module registers
its parameters, the first innermost. Those orders are a table,
by the parameters' names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.bounded_match import matches
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.patterns import PatternError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["REGISTERED", "parameter_names", "split_wrappers"]

REGISTERED: Final = (
    "gate_proj",
    "gate_up_proj",
    "gate_up_proj_bias",
    "up_proj",
    "down_proj",
    "down_proj_bias",
    "w1",
    "v1",
    "w2",
)
"""The parameters of transformers' expert modules, in the order in which they are registered."""

_WRAPPER: Final = ".base_layer"


def split_wrappers(path: str) -> tuple[str, int]:
    """Return a module's path without wrappers, and by how many wrappers it is wrapped.

    >>> split_wrappers("mlp.experts.base_layer")
    ('mlp.experts', 1)
    """
    stem = path
    while stem.endswith(_WRAPPER):
        stem = stem.removesuffix(_WRAPPER)
    return stem.replace(_WRAPPER + ".", "."), (len(path) - len(stem)) // len(_WRAPPER)


def parameter_names(
    module: str, depths: Collection[int], config: Mapping[str, Any], source: str
) -> dict[int, str]:
    """Return the name of the parameter that each wrapper of `module` adapts, by its depth.

    Args:
        module: The module's path.
        depths: How many wrappers are around each that the file holds tensors of.
        config: The adapter's config.
        source: The adapter, for messages.

    Returns:
        Nothing where the module is adapted itself.

    Raises:
        AdapterError: The file holds other wrappers than the config means.
        UnsupportedError: Several parameters of a module, in an order that is not known.
    """
    own, anywhere = _targeted(module, config)
    names = own if own and len(own) == len(depths) else own | anywhere
    if not names:
        return {}
    if set(depths) != set(range(len(names))):
        msg = (
            f"adapter {source!r} has {len(depths)} update(s) of parameters of {module!r}, "
            f"its config says target_parameters: {', '.join(sorted(names))}"
        )
        raise AdapterError(msg, hint="Config and tensors are not of the same adapter.")
    if len(names) > 1 and (unknown := sorted(names - set(REGISTERED))):
        msg = (
            f"adapter {source!r} updates {' and '.join(sorted(names))} of {module!r}, "
            f"and their order is unknown: {unknown[0]!r} is not a parameter that is known"
        )
        raise UnsupportedError(
            msg, hint="Merge it with PEFT; please report the model that has such a module."
        )
    ordered = sorted(names, key=REGISTERED.index) if len(names) > 1 else list(names)
    return dict(enumerate(reversed(ordered)))


def _targeted(module: str, config: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Return the parameters of `module` that ``target_parameters`` means, as PEFT matches them.

    Those that it names with their module (``gate.weight``) come first. One that it names without
    (``down_proj``) may be any module's, and whether this one has it is not known here: PEFT targets
    routers and experts of a mixture with ``["gate.weight", "gate_up_proj", "down_proj"]``.
    """
    targets = config.get("target_parameters") or []
    own: set[str] = set()
    anywhere: set[str] = set()
    for target in targets:
        owner, _, name = target.rpartition(".")
        if owner and f".{module}".endswith(f".{owner}"):
            own.add(name)
        elif not owner and not _is_target(module, config):
            anywhere.add(name)
    return own, anywhere


def _is_target(module: str, config: Mapping[str, Any]) -> bool:
    """Whether ``target_modules`` means `module`."""
    targets = config.get("target_modules") or ()
    if isinstance(targets, str):
        try:
            return matches(targets, module)
        except PatternError as error:
            msg = f"target_modules is {targets[:60]!r}, which cannot be used: {error}"
            raise AdapterError(msg, hint="The adapter's config is damaged.") from error
    return any(f".{module}".endswith(f".{each}") for each in targets)
