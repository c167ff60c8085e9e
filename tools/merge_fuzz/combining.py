"""Two adapters in one, by PEFT's ``add_weighted_adapter``."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import peft

from lora_export.commands.recipe import CombineSpec
from tools.merge_fuzz.adapters import AdapterSpec, scale_layers, train
from tools.merge_fuzz.quiet import quiet

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from tools.merge_fuzz.adapters import FeedMaker

__all__ = ["Combine", "combined", "draw_combine"]

_METHODS: Final = (
    "cat",
    "svd",
    "linear",
    "ties",
    "ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
)
"""Those of PEFT's methods that leave nothing to chance."""

_EXACT: Final = frozenset({"cat", "svd", "linear"})

_REFUSED: Final = frozenset(
    {"modules_to_save", "trainable_token_indices", "target_parameters", "use_dora", "bias"}
    | {"lora_bias", "use_rslora", "init_lora_weights"}
)
"""Settings that PEFT or this project does not combine, or combines otherwise (documented)."""


@dataclass(frozen=True)
class Combine:
    """A combination of two adapters.

    Attributes:
        method: PEFT's ``combination_type``.
        weights: Their weights.
        density: The share of entries that pruning keeps.
        rank: The second adapter's rank, where it may be another.
    """

    method: str
    weights: tuple[float, float]
    density: float | None = None
    rank: int | None = None

    @property
    def spec(self) -> CombineSpec:
        """The same for this project."""
        return CombineSpec(
            method=self.method, weights=list(self.weights), density=self.density, name="c"
        )


def draw_combine(random: Random, adapter: AdapterSpec) -> Combine | None:
    """Draw how an adapter is combined with another; None where PEFT does not combine such ones."""
    saved = adapter.save_embeddings is True and "float32" not in adapter.dtype  # and rounded
    if adapter.grown or saved or not _REFUSED.isdisjoint(adapter.settings):
        return None
    method = random.choice(_METHODS)
    if "float32" not in adapter.dtype and method not in _EXACT:
        return None  # equal magnitudes: which are kept is this project's own rule
    free = method == "cat" or method.endswith("svd")
    return Combine(
        method=method,
        weights=(random.choice([1.0, 0.5, -0.7]), random.choice([1.0, 2.0, -0.3])),
        density=None if method in _EXACT else random.choice([0.2, 0.5, 1.0]),
        rank=random.choice([1, 3, 16]) if free else None,
    )


def combined(
    model: Any,
    how: Combine,
    spec: AdapterSpec,
    folders: tuple[Path, Path],
    *,
    base: Path,
    feeds: FeedMaker,
    scale: float,
) -> Any:
    """Train a second adapter in the second folder; return PEFT's model of both, combined.

    Args:
        model: The base.
        how: How they are combined.
        spec: The first adapter, which lies in the first folder.
        folders: Where they are.
        base: What they name as their base.
        feeds: Makes inputs for a model.
        scale: What multiplies both adapters' scales.
    """
    rank = how.rank or spec.settings["r"]
    second = replace(spec, settings={**spec.settings, "r": rank}, seed=spec.seed + 1)
    train(model, second, folders[1], base, feeds)
    with quiet():
        both = peft.PeftModel.from_pretrained(
            copy.deepcopy(model), str(folders[0]), adapter_name="a"
        )
        both.load_adapter(str(folders[1]), "b")
        scale_layers(both, scale)
        both.base_model.add_weighted_adapter(
            ["a", "b"], list(how.weights), "c", combination_type=how.method, density=how.density
        )
        both.set_adapter("c")
    return both.eval()
