"""Several adapters into one: PEFT's ``add_weighted_adapter`` is the oracle."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_export.adapters.canonical import Adapter, Added, LowRank, Rows, Saved
from lora_export.adapters.combine import (
    METHODS,
    Combination,
    combine,
    default_rank,
    drop_matching,
    scaled,
)
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.tensors import MemoryTensor, read_all

MODULES = {"linear": (7, 5), "conv1d": (6, 5), "embedding": (4, 9), "conv2d": (5, 3)}
"""``(out, in)`` of each; the convolution's kernel is 3 × 2, the embedding has 9 tokens."""

KERNEL = (3, 2)


def tensor(values: np.ndarray, name: str = "x") -> MemoryTensor:
    return MemoryTensor(name, DTYPES["float32"], np.asarray(values, np.float32))


def update(module: str, rank: int, scale: float, random: np.random.Generator) -> LowRank:
    outputs, inputs = MODULES[module]
    kernel, ones = (KERNEL, (1, 1)) if module == "conv2d" else ((), ())
    a = tensor(random.standard_normal((rank, inputs, *kernel)), f"{module}.A")
    b = tensor(random.standard_normal((outputs, rank, *ones)), f"{module}.B")
    return LowRank(module, a, b, scale, module == "embedding")


def adapter(
    name: str, *, rank: int = 2, scale: float = 1.0, seed: int = 0, modules: Any = None, **more: Any
) -> Adapter:
    random = np.random.default_rng(seed)
    updates = tuple(update(module, rank, scale, random) for module in modules or MODULES)
    return Adapter(
        name=name, source=name, folder=Path(), low_rank=updates, task_type=None,
        base_name=None, sha256=f"{seed:064x}",
        **{"format": "peft", "saved": (), "config": {}, **more},
    )  # fmt: skip


def delta(update: LowRank) -> np.ndarray:
    """Return ``s·B A`` as ``(out, in·kernel)`` in float64."""
    a = read_all(update.a).astype(np.float64).reshape(update.rank, -1)
    b = read_all(update.b).astype(np.float64).reshape(-1, update.rank)
    return update.scale * (b @ a)


def by_module(one: Adapter) -> dict[str, np.ndarray]:
    return {update.module: delta(update) for update in one.low_rank}


def in_peft(adapters: list[Adapter], how: Combination, **settings: Any) -> dict[str, np.ndarray]:
    """Combine `adapters` in PEFT; return ``s·B A`` of each module."""
    import peft
    import torch
    from transformers.pytorch_utils import Conv1D

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(5, 7)
            self.conv1d = Conv1D(6, 5)
            self.embedding = torch.nn.Embedding(9, 4)
            self.conv2d = torch.nn.Conv2d(3, 5, KERNEL)

    wrapped: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in adapters:
            first = one.low_rank[0]
            config = peft.LoraConfig(
                r=first.rank,
                lora_alpha=first.scale * first.rank,  # type: ignore[arg-type]
                target_modules=[update.module for update in one.low_rank],
                fan_in_fan_out=False,
            )
            if wrapped is None:
                wrapped = peft.PeftModel(Net(), config, adapter_name=one.name)
            else:
                wrapped.add_adapter(one.name, config)
        _fill(wrapped, adapters)
        wrapped.base_model.add_weighted_adapter(
            [one.name for one in adapters],
            list(how.weights or [1.0] * len(adapters)),
            "combined",
            combination_type=how.method,
            density=how.density,
            svd_rank=how.rank,
            majority_sign_method=how.majority_sign_method,
            **settings,
        )
    found = {}
    for name, layer in wrapped.base_model.model.named_children():
        if "combined" in getattr(layer, "scaling", {}):
            value = layer.get_delta_weight("combined").detach().double().numpy()
            value = value.T if name in {"embedding", "conv1d"} else value
            found[name] = value.reshape(len(value), -1)
    return found


def _fill(wrapped: Any, adapters: list[Adapter]) -> None:
    import torch

    with torch.no_grad():
        for one in adapters:
            for each in one.low_rank:
                layer = getattr(wrapped.base_model.model, each.module)
                a, b = (torch.from_numpy(read_all(factor)) for factor in (each.a, each.b))
                if each.embedding:
                    layer.lora_embedding_A[one.name].copy_(a)
                    layer.lora_embedding_B[one.name].copy_(b)
                else:
                    layer.lora_A[one.name].weight.copy_(a)
                    layer.lora_B[one.name].weight.copy_(b)


def assert_same(ours: Adapter, theirs: dict[str, np.ndarray]) -> None:
    found = by_module(ours)
    assert set(found) == set(theirs)
    for module, expected in theirs.items():
        error = np.linalg.norm(found[module] - expected)
        assert error <= 3e-6 * max(np.linalg.norm(expected), 1.0), module


PRUNING = tuple(method for method in METHODS if method not in {"linear", "cat", "svd"})
RANDOM = tuple(method for method in PRUNING if method.startswith("dare"))


@pytest.mark.parametrize("method", METHODS)
@given(
    weights=st.lists(st.floats(-2, 2, width=32).filter(lambda w: abs(w) > 1e-2), min_size=2,
                     max_size=3),
    scales=st.lists(st.sampled_from([-1.5, 0.25, 1.0, 2.0]), min_size=3, max_size=3),
    ranks=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    density=st.sampled_from([0.2, 0.5, 0.9, 1.0]),
    sign=st.sampled_from(["total", "frequency"]),
    seed=st.integers(0, 2**20),
)  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_equals_peft(method, *, weights, scales, ranks, density, sign, seed):
    free = method == "cat" or method.endswith("svd")
    given_adapters = [
        adapter(f"a{i}", rank=ranks[i if free else 0], scale=scales[i], seed=seed + i)
        for i in range(len(weights))
    ]
    how = Combination(
        method,
        tuple(weights),
        (1.0 if method in RANDOM else density) if method in PRUNING else None,
        majority_sign_method=sign,
    )
    assert_same(combine(given_adapters, how, name="c"), in_peft(given_adapters, how))


@pytest.mark.parametrize("method", ["svd", "ties_svd", "magnitude_prune_svd"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_rank_of_svd_is_peft_s(method, rank):
    adapters = [adapter("a", rank=2), adapter("b", rank=3, seed=1)]
    how = Combination(method, (0.7, -0.4), 0.6 if method != "svd" else None, rank=rank)
    ours = combine(adapters, how, name="c")
    assert_same(ours, in_peft(adapters, how))
    assert {each.rank for each in ours.low_rank} == {rank}


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{"r": 16, "rank_pattern": {"linear": 2}}, {"r": 2}], 16),
        ([{"r": 2}, {"r": 2, "rank_pattern": {"conv1d": 9, "nothing": 5}}], 9),
        ([{"r": 2, "rank_pattern": None}, {"r": 2, "rank_pattern": {}}], 2),
    ],
)
def test_the_default_rank_is_the_largest_of_the_configs(configs, expected):
    adapters = [adapter(f"a{i}", config=config) for i, config in enumerate(configs)]
    assert default_rank("svd", adapters) == default_rank("ties_svd", adapters) == expected
    assert default_rank("cat", adapters) is None
    assert default_rank("ties", adapters) is None


def test_the_default_rank_of_other_formats_is_that_of_their_tensors():
    kohya = adapter("a", rank=3, format="kohya", config={"r": 64})
    assert default_rank("svd", [kohya, adapter("b", config={"r": 2})]) == 3


@pytest.mark.parametrize("method", ["linear", "cat", "svd", "ties", "ties_svd"])
def test_an_adapter_without_a_module_counts_as_absent_as_in_peft(method):
    adapters = [
        adapter("a", modules=["linear", "conv1d"]),
        adapter("b", modules=["conv1d", "embedding"], seed=1),
    ]
    how = Combination(method, (0.5, 2.0), 0.5 if method.startswith("ties") else None)
    ours = combine(adapters, how, name="c")
    assert set(by_module(ours)) == {"linear", "conv1d", "embedding"}
    assert_same(ours, in_peft(adapters, how))


@pytest.mark.parametrize("method", ["ties_svd", "magnitude_prune_svd"])
def test_equal_entries_of_a_product_are_equal_after_it_is_computed(method):
    """B is the identity: ΔW is A itself, of ±1, and the first ⌊density · n⌋ entries stay."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (7, 5)).astype(np.float32)
    low = LowRank("linear", tensor(signs), tensor(np.eye(7)), 0.3)
    adapters = [replace(adapter(name), low_rank=(low,)) for name in ("a", "b")]
    found = delta(combine(adapters, Combination(method, density=0.5), name="c").low_rank[0])
    expected = np.where(np.arange(35).reshape(7, 5) < 17, 0.3 * signs, 0)
    expected *= 2 if method == "magnitude_prune_svd" else 1
    assert np.allclose(found, expected, atol=1e-6)


def test_cat_and_svd_of_full_rank_are_the_exact_sum():
    adapters = [adapter("a", rank=2, scale=0.5), adapter("b", rank=3, scale=2.0, seed=1)]
    parts = [by_module(one) for one in adapters]
    for how in (Combination("cat", (1.5, -1.0)), Combination("svd", (1.5, -1.0), rank=5)):
        found = by_module(combine(adapters, how, name="c"))
        for module, value in found.items():
            expected = 1.5 * parts[0][module] - parts[1][module]
            assert np.allclose(value, expected, atol=1e-5), module


# --------------------------------------------------------------------------------- randomness


def test_dare_keeps_the_density_rescales_and_has_the_right_mean():
    random = np.random.default_rng(0)
    ones = tensor(np.ones((2, 5000)))
    big = LowRank("m", ones, tensor(random.standard_normal((3, 2))), 1.0)
    other = LowRank("m", tensor(np.zeros((2, 5000))), tensor(np.zeros((3, 2))), 1.0)
    adapters = [adapter("a", modules=["linear"]), adapter("b", modules=["linear"])]
    adapters = [
        Adapter(**{**vars(one), "low_rank": (low,)})
        for one, low in zip(adapters, (big, other), strict=True)
    ]
    found = combine(adapters, Combination("dare_linear", density=0.3), name="c").low_rank[0]
    values = read_all(found.a)
    assert np.allclose(values[values != 0], 1 / 0.3)
    assert abs((values != 0).mean() - 0.3) < 0.02
    assert abs(values.mean() - 1.0) < 0.06


def test_dare_follows_its_seed():
    adapters = [adapter("a", rank=3), adapter("b", rank=3, seed=1)]
    first, again, other = (
        by_module(combine(adapters, Combination("dare_ties", density=0.5, seed=s), name="c"))
        for s in (0, 0, 1)
    )
    assert all(np.array_equal(first[m], again[m]) for m in first)
    assert any(not np.array_equal(first[m], other[m]) for m in first)


# -------------------------------------------------------------------- what cannot be combined


def saved(value: float) -> Saved:
    return Saved("head.weight", tensor(np.full((2, 3), value), "head.weight"))


def test_equal_heads_are_kept_and_different_ones_refused_until_dropped():
    one, same, other = (adapter(n, saved=(saved(v),)) for n, v in (("a", 1), ("b", 1), ("c", 2)))
    cat = Combination("cat")
    assert [s.parameter for s in combine([one, same], cat, name="x").saved] == ["head.weight"]
    with pytest.raises(AdapterError, match=r"'a' and 'c' both carry 'head.weight'") as caught:
        combine([one, other], cat, name="x")
    assert "--drop" in str(caught.value.hint)
    kept = combine([one, drop_matching(other, ["head.*"])], cat, name="x")
    assert float(read_all(kept.saved[0].tensor)[0, 0]) == 1


def test_drop_must_match():
    with pytest.raises(UsageError, match="matches no tensor"):
        drop_matching(adapter("a"), ["nothing.*"])


def test_biases_on_b_add_up():
    one, two = (
        adapter(n, added=(Added("linear.bias", tensor(np.full(7, v)), 2.0),))
        for n, v in (("a", 1.0), ("b", 3.0))
    )
    (found,) = combine([one, two], Combination("svd", (1.0, -0.5)), name="x").added
    assert np.allclose(read_all(found.tensor), 2 * 1 - 0.5 * 2 * 3)
    with pytest.raises(UnsupportedError, match="biases on B"):
        combine([one, two], Combination("ties", density=0.5), name="x")


def test_magnitudes_and_rows_are_refused():
    plain = adapter("a")
    low = plain.low_rank[0]
    dora = Adapter(**{**vars(plain), "low_rank": (LowRank(
        low.module, low.a, low.b, 1.0, magnitude=tensor(np.ones(7))),)})  # fmt: skip
    with pytest.raises(UnsupportedError, match="DoRA"):
        combine([plain, dora], Combination("cat"), name="x")
    rows = adapter("b", rows=(Rows("embedding.weight", (1,), tensor(np.ones((1, 4)))),))
    with pytest.raises(UnsupportedError, match=r"replaces rows of 'embedding.weight'"):
        combine([plain, rows], Combination("cat"), name="x")


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (Combination("sum"), "unknown method 'sum'"),
        (Combination("cat", (1.0,)), "cannot be combined with the weights"),
        (Combination("cat", (1.0, float("nan"))), "cannot be combined with the weights"),
        (Combination("cat", density=0.5), "takes no density"),
        (Combination("ties"), "needs a density"),
        (Combination("ties", density=0.0), "needs a density"),
        (Combination("dare_linear", density=1.5), "needs a density"),
        (Combination("cat", rank=3), "'cat' takes no rank 3"),
        (Combination("svd", rank=0), "'svd' takes no rank 0"),
    ],
)
def test_wrong_requests_are_usage_errors(how, text):
    with pytest.raises(UsageError, match=text):
        combine([adapter("a"), adapter("b")], how, name="x")


def test_one_adapter_unequal_ranks_other_bases_and_overflow_are_refused():
    with pytest.raises(UsageError, match="at least two"):
        combine([adapter("a")], Combination("cat"), name="x")
    pair = [adapter("a", rank=1), adapter("b", rank=2)]
    with pytest.raises(AdapterError, match="needs equal ranks") as caught:
        combine(pair, Combination("ties", density=0.5), name="x")
    assert "ties_svd" in str(caught.value.hint)
    wide = LowRank("linear", tensor(np.ones((2, 6))), tensor(np.ones((7, 2))), 1.0)
    other = Adapter(**{**vars(adapter("b")), "low_rank": (wide,)})
    with pytest.raises(AdapterError, match="different shapes"):
        combine([adapter("a"), other], Combination("cat"), name="x")
    with pytest.raises(AdapterError, match="too large for float32"):
        combine([adapter("a"), adapter("b")], Combination("cat", (1e30, 1e39)), name="x")


# --------------------------------------------------------------------------------------- scale


def test_a_scale_multiplies_updates_and_leaves_heads():
    one = adapter(
        "a", scale=0.5, saved=(saved(1),), added=(Added("linear.bias", tensor(np.ones(7)), 2.0),)
    )
    half = scaled(one, -0.5)
    assert {each.scale for each in half.low_rank} == {-0.25}
    assert half.added[0].scale == -1.0
    assert half.saved == one.saved
    assert half.factor == -0.5
    assert scaled(one, 1.0) is one
    for bad in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="scale of adapter 'a'"):
            scaled(one, bad)


def test_the_hash_tells_scales_weights_and_methods_apart():
    adapters = [adapter("a"), adapter("b", seed=1)]
    ways = [
        (adapters, Combination("cat")),
        (adapters, Combination("cat", (1.0, 2.0))),
        (adapters, Combination("svd")),
        ([scaled(adapters[0], 2.0), adapters[1]], Combination("cat")),
    ]
    assert len({combine(given_, how, name="x").sha256 for given_, how in ways}) == len(ways)
    explicit = combine(adapters, Combination("cat", (1.0, 1.0)), name="y")
    assert explicit.sha256 == combine(adapters, Combination("cat"), name="x").sha256
