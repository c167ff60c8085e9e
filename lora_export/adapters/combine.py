"""Several adapters into one, as PEFT's ``add_weighted_adapter`` combines them (PEFT 0.21).

With weights w and scales s, on the adapters that have a module (the others count as absent):

    cat               A = [w₁s₁A₁; w₂s₂A₂; …]   B = [B₁ B₂ …]         exact: Σᵢ wᵢsᵢ BᵢAᵢ
    svd               the best rank-r approximation of Σᵢ wᵢsᵢ BᵢAᵢ
    linear, ties, dare_linear, dare_ties, magnitude_prune
                      `merging.merge` of the Aᵢ with sign(wᵢsᵢ)√|wᵢsᵢ|, of the Bᵢ with √|wᵢsᵢ|
    ties_svd, …       `merging.merge` of the deltas sᵢBᵢAᵢ with wᵢ, then svd

The result has the scale 1. PEFT keeps rsLoRA's setting for it, and so multiplies it by √r; that is
an oversight, and the one difference here.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import zlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Adapter, Added, LowRank
from lora_export.adapters.combined_parameters import shared_parameters
from lora_export.adapters.delta import read_finite
from lora_export.adapters.merging import MajoritySign, Rule, low_rank_svd, merge, truncated_svd
from lora_export.adapters.methods.interface import TO_LORA
from lora_export.core.dtypes import DTYPES, Float32Array
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.tensors import MemoryTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.adapters.canonical import Item

__all__ = ["METHODS", "Combination", "combine", "default_rank", "drop_matching", "scaled"]

METHODS: Final = (
    "linear",
    "cat",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
)
_DENSE: Final = frozenset({"linear", "cat", "svd"})
"""Methods that keep every entry: a density takes no them."""

_SUMS: Final = frozenset({"linear", "cat", "svd"})
"""Methods under which a bias on B adds up as the updates do."""


@dataclass(frozen=True)
class Combination:
    """A way to combine adapters: method, weights, and the settings of the method.

    Attributes:
        method: One of `METHODS`.
        weights: One factor per adapter, of either sign; None is 1 for each.
        density: The share of entries kept, for methods that prune.
        rank: The largest rank of the result, for ``svd`` and ``…_svd``. None is the largest rank of
            the adapters' tensors, which is what records without a rank mean; what is combined anew
            gets `default_rank`.
        majority_sign_method: How TIES elects signs.
        seed: Seeds DARE's masks.
        head_from: The adapter whose head is taken where several bring different ones.
    """

    method: str
    weights: tuple[float, ...] | None = None
    density: float | None = None
    rank: int | None = None
    majority_sign_method: MajoritySign = "total"
    seed: int = 0
    head_from: str | None = None


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """Return `adapter` with the scale of each update multiplied by `factor`; heads stay.

    As PEFT's ``scale_layer``: with a magnitude (DoRA) the factor acts within the norm too.

    Raises:
        UsageError: `factor` is not finite.
        UnsupportedError: The adapter holds a part of its base, which is not to be scaled.
    """
    if not math.isfinite(factor):
        msg = f"the scale of adapter {adapter.name!r} is {factor}"
        raise UsageError(msg, hint="Give a finite number; 1 leaves the adapter as it is.")
    if factor == 1:
        return adapter
    if adapter.residual is not None:
        msg = f"adapter {adapter.source!r} holds a part of its base ({adapter.residual})"
        raise UnsupportedError(
            msg, hint="A scale other than 1 would scale that part too; convert it first."
        )
    if adapter.computed:
        msg = f"adapter {adapter.source!r} is of the method {adapter.method}, which has no scale"
        raise UnsupportedError(msg, hint=TO_LORA)
    return replace(
        adapter,
        low_rank=tuple(replace(each, scale=each.scale * factor) for each in adapter.low_rank),
        added=tuple(replace(each, scale=each.scale * factor) for each in adapter.added),
        factor=adapter.factor * factor,
    )


def drop_matching(adapter: Adapter, patterns: Sequence[str]) -> Adapter:
    """Return `adapter` without what `patterns` (``fnmatch``) name.

    Raises:
        UsageError: A pattern matches nothing.
    """

    def kept(path: str) -> bool:
        return not any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    rest: tuple[Item, ...] = (
        *adapter.saved,
        *adapter.added,
        *adapter.rows,
        *adapter.low_rank,
        *adapter.computed,
    )
    paths = [each.parameter for each in rest]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            msg = f"--drop {pattern!r} matches no tensor of adapter {adapter.source!r}"
            raise UsageError(msg, hint="See its tensors with: lora-export inspect ADAPTER")
    return replace(
        adapter,
        low_rank=tuple(each for each in adapter.low_rank if kept(each.parameter)),
        saved=tuple(each for each in adapter.saved if kept(each.parameter)),
        added=tuple(each for each in adapter.added if kept(each.parameter)),
        rows=tuple(each for each in adapter.rows if kept(each.parameter)),
        computed=tuple(each for each in adapter.computed if kept(each.parameter)),
    )


def default_rank(method: str, adapters: Sequence[Adapter]) -> int | None:
    """Return the rank of the result where the user gives none; None for methods that take none.

    That of PEFT's ``add_weighted_adapter``: the largest ``r`` or value of ``rank_pattern`` in the
    adapters' configs, whether or not a module has it. An adapter of another format has no such
    config; the largest rank of its tensors counts.

    Args:
        method: One of `METHODS`.
        adapters: What is combined.
    """
    if not method.endswith("svd"):
        return None
    return max((_configured_rank(adapter) for adapter in adapters), default=None)


def _configured_rank(adapter: Adapter) -> int:
    ranks: list[object] = [adapter.max_rank]
    if adapter.format == "peft":
        pattern = adapter.config.get("rank_pattern") or {}
        ranks += [adapter.config.get("r"), *pattern.values()]
    return max(rank for rank in ranks if isinstance(rank, int))


def combine(adapters: Sequence[Adapter], combination: Combination, *, name: str) -> Adapter:
    """Combine adapters into one called `name`, in float32, held in memory.

    A parameter that is carried whole is kept where all adapters that carry it agree.

    Raises:
        UsageError: Too few adapters, as many weights as adapters are not given, a method, weight,
            density or rank that does not exist.
        AdapterError: Ranks that differ where the method needs equal ones; saved parameters that
            contradict each other; NaN or infinity.
        UnsupportedError: Adapters with magnitudes (DoRA) or replaced rows: no sum is defined.
    """
    weights = _checked(adapters, combination)
    for adapter in adapters:
        _refuse_unsummable(adapter, combination)
    modules: dict[str, list[tuple[LowRank, float]]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for update in adapter.low_rank:
            modules.setdefault(update.module, []).append((update, weight))
    rank = combination.rank or max(adapter.max_rank for adapter in adapters)
    first = adapters[0]
    task_types = {adapter.task_type for adapter in adapters if adapter.task_type}
    return Adapter(
        name=name,
        source=" + ".join(adapter.name for adapter in adapters),
        folder=first.folder,
        format="combined",
        low_rank=tuple(_combine_module(modules[key], combination, rank) for key in sorted(modules)),
        saved=shared_parameters(adapters, combination.head_from),
        task_type=task_types.pop() if len(task_types) == 1 else None,
        base_name=next((each.base_name for each in adapters if each.base_name), None),
        sha256=_digest(adapters, weights, combination),
        config={
            "fan_in_fan_out": any(each.config.get("fan_in_fan_out") for each in adapters),
            "modules_to_save": sorted(
                {key for each in adapters for key in each.config.get("modules_to_save") or ()}
            ),
        },
        added=_sum_added(adapters, weights),
    )


def _checked(adapters: Sequence[Adapter], combination: Combination) -> tuple[float, ...]:
    """Return the weights, everything about the request checked."""
    if combination.method not in METHODS:
        msg = f"unknown method {combination.method!r} to combine adapters"
        raise UsageError(msg, hint=f"Known: {', '.join(METHODS)}.")
    if len(adapters) < 2:  # noqa: PLR2004  (several)
        msg = f"--combine {combination.method} needs at least two adapters, got {len(adapters)}"
        raise UsageError(msg, hint="To weaken or strengthen a single one, use --scale.")
    names = [adapter.name for adapter in adapters]
    if combination.head_from is not None and combination.head_from not in names:
        msg = f"head_from is {combination.head_from!r}, which is not one of the combined adapters"
        raise UsageError(msg, hint=f"--head-from takes one of: {', '.join(names)}.")
    weights = combination.weights or (1.0,) * len(adapters)
    if len(weights) != len(adapters) or not all(map(math.isfinite, weights)):
        msg = f"{len(adapters)} adapters cannot be combined with the weights {list(weights)}"
        raise UsageError(msg, hint="Give one finite weight per adapter, in their order.")
    dense = combination.method in _DENSE
    if dense and combination.density is not None:
        msg = f"{combination.method!r} takes no density: it keeps every entry"
        raise UsageError(msg, hint="Leave it out, or choose ties, dare_* or magnitude_prune.")
    if not dense and (combination.density is None or not 0 < combination.density <= 1):
        got = "" if combination.density is None else f"; got {combination.density}"
        msg = f"{combination.method!r} needs a density, the share of entries to keep{got}"
        raise UsageError(msg, hint="Give one above 0, at most 1: --combine-density 0.5")
    if combination.rank is not None and (
        combination.rank < 1 or not combination.method.endswith("svd")
    ):
        msg = f"{combination.method!r} takes no rank {combination.rank}"
        raise UsageError(msg, hint="Only svd and the *_svd methods take a rank, of at least 1.")
    return weights


def _refuse_unsummable(adapter: Adapter, combination: Combination) -> None:
    hint = "Merge it in PEFT with merge_and_unload, and combine the others on that base."
    if adapter.residual is not None:
        msg = (
            f"adapter {adapter.source!r} holds a part of its base ({adapter.residual}), "
            "which a sum would count twice"
        )
        raise UnsupportedError(msg, hint=hint)
    if any(update.magnitude is not None for update in adapter.low_rank):
        msg = f"adapter {adapter.source!r} is DoRA: its magnitudes cannot be combined with others"
        raise UnsupportedError(msg, hint=hint)
    if bare := [update.parameter for update in adapter.low_rank if update.name is not None]:
        msg = (
            f"adapter {adapter.source!r} updates the bare parameter {bare[0]!r} "
            "(target_parameters), which is not combined with others"
        )
        raise UnsupportedError(msg, hint=hint)
    if adapter.computed:
        msg = f"adapter {adapter.source!r} is of the method {adapter.method}, which has no sum"
        raise UnsupportedError(msg, hint=TO_LORA)
    if adapter.rows:
        msg = (
            f"adapter {adapter.source!r} replaces rows of {adapter.rows[0].parameter!r}, "
            "which cannot be combined with others"
        )
        raise UnsupportedError(msg, hint=f"{hint} Or leave them out with --drop.")
    if adapter.added and combination.method not in _SUMS:
        msg = (
            f"adapter {adapter.source!r} has biases on B ({adapter.added[0].parameter!r}), "
            f"for which {combination.method!r} is not defined"
        )
        raise UnsupportedError(msg, hint="Combine with linear, cat or svd.")


def _combine_module(
    updates: Sequence[tuple[LowRank, float]], combination: Combination, rank: int
) -> LowRank:
    """Combine the updates of one module."""
    first = updates[0][0]
    _require_alike([update for update, _ in updates])
    shape_a, shape_b = first.a.shape[1:], first.b.shape[2:]
    pairs = [
        (read_finite(u.a).reshape(u.rank, -1), read_finite(u.b).reshape(-1, u.rank))
        for u, _ in updates
    ]  # (r, in), (out, r)
    scales = [weight * update.scale for update, weight in updates]
    with np.errstate(over="ignore", invalid="ignore"):
        a, b = _combine_factors(pairs, scales, updates, combination, rank)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        msg = f"the combined update of {first.module!r} is too large for float32"
        raise AdapterError(msg, hint="Use smaller weights or scales.")
    return LowRank(
        first.module,
        _tensor(f"{first.module}.lora_A.weight", a.reshape(-1, *shape_a)),
        _tensor(f"{first.module}.lora_B.weight", b.reshape(*b.shape, *shape_b)),
        1.0,
        first.embedding,
    )


def _combine_factors(
    pairs: Sequence[tuple[Float32Array, Float32Array]],
    scales: Sequence[float],
    updates: Sequence[tuple[LowRank, float]],
    combination: Combination,
    rank: int,
) -> tuple[Float32Array, Float32Array]:
    """Return A and B of the result, as matrices."""
    if combination.method in {"cat", "svd"}:
        a = np.concatenate([a * np.float32(s) for (a, _), s in zip(pairs, scales, strict=True)])
        b = np.concatenate([b for _, b in pairs], axis=1)
        return (a, b) if combination.method == "cat" else low_rank_svd(b, a, rank)
    random = np.random.default_rng([combination.seed, zlib.crc32(updates[0][0].module.encode())])
    rule = Rule(
        combination.method.removesuffix("_svd"),
        combination.density or 1.0,
        combination.majority_sign_method,
    )
    if combination.method.endswith("_svd"):
        deltas = [_delta(a, b, u.scale) for (a, b), (u, _) in zip(pairs, updates, strict=True)]
        return truncated_svd(merge(deltas, [w for _, w in updates], rule, random), rank)
    _require_equal_ranks([update for update, _ in updates], combination)
    roots = [math.sqrt(abs(s)) for s in scales]
    signed = [math.copysign(root, s) for root, s in zip(roots, scales, strict=True)]
    a = merge([a for a, _ in pairs], signed, rule, random)
    return a, merge([b for _, b in pairs], roots, rule, random)


def _delta(a: Float32Array, b: Float32Array, scale: float) -> Float32Array:
    """Return ``s·B A``, summed in float64: which entries are equal must not depend on the CPU."""
    return np.asarray((b.astype(np.float64) @ a.astype(np.float64)) * scale, np.float32)


def _require_alike(updates: Sequence[LowRank]) -> None:
    first = updates[0]
    for other in updates[1:]:
        alike = first.a.shape[1:] == other.a.shape[1:] and first.b.shape[0] == other.b.shape[0]
        if not alike or first.embedding != other.embedding:
            msg = (
                f"the adapters' updates of {first.module!r} have different shapes: "
                f"A {list(first.a.shape)} and {list(other.a.shape)}, "
                f"B {list(first.b.shape)} and {list(other.b.shape)}"
            )
            raise AdapterError(msg, hint="They were trained on different bases.")


def _require_equal_ranks(updates: Sequence[LowRank], combination: Combination) -> None:
    ranks = {update.rank for update in updates}
    if len(ranks) > 1:
        msg = (
            f"{combination.method!r} needs equal ranks; those of {updates[0].module!r} are "
            f"{', '.join(map(str, sorted(ranks)))}"
        )
        exact = "cat" if combination.method == "linear" else f"{combination.method}_svd"
        raise AdapterError(msg, hint=f"Combine with {exact}, which takes any ranks.")


def _sum_added(adapters: Sequence[Adapter], weights: Sequence[float]) -> tuple[Added, ...]:
    """Return ``Σᵢ wᵢ sᵢ bᵢ`` for each parameter that is added to."""
    sums: dict[str, Float32Array] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for each in adapter.added:
            value = read_finite(each.tensor) * np.float32(weight * each.scale)
            sums[each.parameter] = sums[each.parameter] + value if each.parameter in sums else value
    return tuple(Added(path, _tensor(path, sums[path]), 1.0) for path in sorted(sums))


def _tensor(name: str, values: Float32Array) -> MemoryTensor:
    return MemoryTensor(name, DTYPES["float32"], np.ascontiguousarray(values, np.float32))


def _digest(adapters: Sequence[Adapter], weights: Sequence[float], combination: Combination) -> str:
    """Hash what the result follows from: the adapters' files, their scales, and how."""
    parts = [
        {
            "sha256": adapter.sha256,
            "scale": adapter.factor,
            "weight": weight,
            "tensors": sorted(tensor.name for tensor in adapter.tensors),
        }
        for adapter, weight in zip(adapters, weights, strict=True)
    ]
    settings = {key: value for key, value in asdict(combination).items() if key != "weights"}
    if combination.head_from is None:  # as it was hashed before there was a choice
        del settings["head_from"]
    text = json.dumps({"parts": parts, **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
