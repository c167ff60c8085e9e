"""Configs that a template is found from, and the one that confirms it.

Sizes of the first three differ from each other and between configs, and span what the template is
for: small, large, in between. The fourth has sizes that are equal where they can be, the fewest
layers, and every irrelevant key changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.graph.templates.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.graph.templates.family import Family

__all__ = ["CONFIRMING", "FITTED", "config_of", "irrelevant_changed"]

FITTED: Final[tuple[dict[str, int], ...]] = (
    {"layers": 7, "vocab": 97, "heads": 6, "kv_heads": 3, "head_dim": 10, "intermediate": 53,
     "positions": 29, "types": 3, "labels": 7, "window": 13,
     "image": 27, "patch": 3, "channels": 5},
    {"layers": 6, "vocab": 3001, "heads": 8, "kv_heads": 4, "head_dim": 64, "intermediate": 2053,
     "positions": 8191, "types": 19, "labels": 311, "window": 4095,
     "image": 224, "patch": 16, "channels": 3},
    {"layers": 9, "vocab": 1009, "heads": 14, "kv_heads": 2, "head_dim": 22, "intermediate": 211,
     "positions": 61, "types": 5, "labels": 11, "window": 37,
     "image": 55, "patch": 5, "channels": 7},
)  # fmt: skip
CONFIRMING: Final = {
    "layers": 4, "vocab": 8, "heads": 2, "head_dim": 4, "intermediate": 8, "positions": 8,
    "types": 2, "labels": 2, "window": 8, "image": 4, "patch": 2, "channels": 2,
}  # fmt: skip

_FLOATS: Final = (1e-3, 1e-12, 3e-5, 1e-5)
_ROTARY_FLOATS: Final = (1e-3, 1e-6, 3e-5, 1e-5)
"""Of an RMS norm, whose term is folded away where it is too small to be seen."""
_WIDTHS: Final = (11, 67, 23, 4)
"""Of models whose heads have a size of their own: the hidden size by the heads."""
_OTHER: Final[dict[type, Any]] = {float: 0.37, int: 3, bool: True, str: "mean", dict: {"a": 1}}


def config_of(
    family: Family, number: int, choices: Mapping[str, Any], *, labels: bool
) -> dict[str, Any]:
    """Return the config of a probe: 0 to 2 of `FITTED`, 3 for `CONFIRMING`."""
    sizes = _sizes_of(family, number, choices)
    config: dict[str, Any] = {"model_type": family.model_type}
    for name, key in family.sizes.items():
        if name == "labels" and not labels:
            continue
        config[key] = sizes[name]
    floats = _ROTARY_FLOATS if family.rotary else _FLOATS
    config |= dict.fromkeys(family.floats.values(), floats[number])
    for key, values in family.all_choices.items():
        if key in choices:
            config[key] = choices[key]
        elif key in family.absent:
            config[key] = values[0]
        elif number == len(FITTED):
            config[key] = values[-1]
    if "pad_token_id" in family.absent.keys() & family.irrelevant.keys():
        config["pad_token_id"] = 0
    if family.window is not None:
        config[family.window] = sizes["window"] if choices["windowed"] else None
    return config


def _sizes_of(family: Family, number: int, choices: Mapping[str, Any]) -> dict[str, int]:
    sizes = dict((*FITTED, CONFIRMING)[number])
    if "kv_heads" in family.sizes and number == len(FITTED):
        sizes |= {"heads": 4, "kv_heads": 2}
    if choices.get("grouped") == "one":
        sizes["kv_heads"] = 1
    elif not choices.get("grouped", True):
        sizes["kv_heads"] = sizes["heads"]
    own = family.absent.get("head_dim")
    if own is not None and (not str(own).startswith("=") or "head_dim" in family.nullable):
        sizes["hidden"] = sizes["heads"] * _WIDTHS[number]
    else:
        sizes["hidden"] = sizes["heads"] * sizes["head_dim"]
    sizes["pooler_hidden"] = sizes["hidden"]
    return sizes


def irrelevant_changed(family: Family) -> dict[str, Any]:
    """Return another value for every irrelevant key."""
    changed: dict[str, Any] = {}
    for key, kinds in family.all_irrelevant.items():
        for kind, other in _OTHER.items():
            if kind in kinds:
                changed[key] = other
                break
    changed["use_cache"] = False
    changed["problem_type"] = "single_label_classification"
    if FAMILIES[family.model_type].rotary:
        changed["max_position_embeddings"] = 48
    return changed
