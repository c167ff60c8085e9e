"""The scale of a PEFT adapter's module, resolved in one place.

``alpha / r``, or ``alpha / sqrt(r)`` under rsLoRA (arXiv 2312.03732), with ``rank_pattern`` and
``alpha_pattern`` matched by PEFT's own rule.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.pattern_settings import setting_of
from lora_export.core.errors import AdapterError
from lora_export.core.patterns import WAYS_LIMIT, are_affordable, ways
from lora_export.core.shown_value import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["rank_by_config", "require_affordable", "scale_of"]

_ALPHA_LIMIT: Final = 1e30


def scale_of(module: str, rank: int, config: Mapping[str, Any], source: str) -> float:
    """Return s for a module.

    Args:
        module: The module's path.
        rank: The rank that its tensors have.
        config: The adapter's config.
        source: The adapter, for messages.

    Raises:
        AdapterError: Config and tensors disagree, or alpha is not a finite number.
    """
    expected = rank_by_config(module, config)
    alpha = setting_of(config, "alpha_pattern", module, config.get("lora_alpha"))
    if expected != rank:
        msg = (
            f"module {module!r} of adapter {source!r} has rank {rank}, "
            f"but its config says {shown(expected)}"
        )
        raise AdapterError(msg, hint="Config and tensors are not of the same adapter.")
    usable = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not usable or not abs(alpha) <= _ALPHA_LIMIT:
        msg = f"adapter {source!r} has the lora_alpha {str(alpha)[:40]} for module {module!r}"
        raise AdapterError(msg, hint="It must be a finite number.")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def rank_by_config(path: str, config: Mapping[str, Any]) -> Any:
    """Return the rank that the config gives to the module or parameter at `path`, unchecked."""
    return setting_of(config, "rank_pattern", path, config.get("r"))


def require_affordable(modules: Collection[str], config: Mapping[str, Any], source: str) -> None:
    """Require that all patterns of the config can be matched with all modules in a few seconds.

    Raises:
        AdapterError: They cannot.
    """
    for setting in ("rank_pattern", "alpha_pattern"):
        patterns = [each for each in config.get(setting) or () if each not in modules]
        simple = [each for each in patterns if ways(each) <= WAYS_LIMIT]
        if not are_affordable(simple, modules):
            msg = (
                f"{setting} of adapter {source!r} has {len(patterns)} patterns for "
                f"{len(modules)} modules, which would take very long to match"
            )
            raise AdapterError(msg, hint="Write them as the modules' whole names.")
