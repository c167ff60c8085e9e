"""Every tensor of an adapter finds its parameter, or is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_export.adapters.canonical import Adapter, LowRank, Saved
from lora_export.adapters.resolve import ModelNames, resolve
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.parameters import Parameter
from lora_export.core.tensors import MemoryTensor


def tensor(*shape: int) -> MemoryTensor:
    return MemoryTensor("t", DTYPES["float32"], np.ones(shape, np.float32))


def low_rank(module: str, inputs: int, outputs: int, *, embedding: bool = False) -> LowRank:
    return LowRank(module, tensor(2, inputs), tensor(outputs, 2), 1.0, embedding)


def adapter(*entries: LowRank | Saved, base_name: str | None = None) -> Adapter:
    return Adapter(
        name="x",
        source="the-adapter",
        folder=Path(),
        format="peft",
        low_rank=tuple(e for e in entries if isinstance(e, LowRank)),
        saved=tuple(e for e in entries if isinstance(e, Saved)),
        task_type=None,
        base_name=base_name,
        sha256="0" * 64,
        config={},
    )


MODEL = (
    Parameter("bert.embeddings.word.weight", (20, 4), "float32", "Embedding"),
    Parameter("bert.layer.0.query.bias", (6,), "float32", "Linear"),
    Parameter("bert.layer.0.query.weight", (6, 4), "float32", "Linear", transposed=True),
    Parameter("bert.layer.0.c_attn.weight", (4, 6), "float32", "Conv1D"),
    Parameter("bert.layer.0.norm.weight", (4,), "float32", "LayerNorm"),
    Parameter("classifier.bias", (3,), "float32", "Linear"),
    Parameter("classifier.weight", (3, 4), "float32", "Linear"),
)
BARE = tuple(
    Parameter(p.name.removeprefix("bert."), p.shape, p.dtype, p.module_type)
    for p in MODEL
    if p.name.startswith("bert.")
)
QUERY = low_rank("bert.layer.0.query", 4, 6)
BARE_QUERY = low_rank("layer.0.query", 4, 6)
HEAD = frozenset({"classifier.weight", "classifier.bias"})


def names(resolved) -> list[str]:
    return [update.parameter.name for update in resolved.updates]


@pytest.mark.parametrize("query", [QUERY, BARE_QUERY], ids=["prefixed", "bare"])
def test_an_adapter_fits_a_model_with_a_head_and_a_bare_one(query):
    with_head = resolve(adapter(query), MODEL, prefix="bert.")
    bare = resolve(adapter(query), BARE, prefix="bert.")
    assert names(with_head) == ["bert.layer.0.query.weight"]
    assert names(bare) == ["layer.0.query.weight"]
    assert with_head.applied_count == bare.applied_count == 2


def test_without_a_prefix_names_are_exact():
    assert names(resolve(adapter(QUERY), MODEL, prefix="")) == ["bert.layer.0.query.weight"]
    with pytest.raises(AdapterError, match=r"layer\.0\.query\.weight"):
        resolve(adapter(BARE_QUERY), MODEL, prefix="")


def test_an_exact_name_wins_over_the_prefixed_one():
    both = (
        Parameter("model.norm.weight", (4,), "float32", "Norm"),
        Parameter("norm.weight", (4,), "float32", "Norm"),
    )
    found = ModelNames(both, "model.")
    assert [found.find(p.name) for p in both] == list(both)


def test_updates_are_sorted_and_counted():
    resolved = resolve(
        adapter(
            Saved("classifier.weight", tensor(3, 4)),
            QUERY,
            low_rank("bert.embeddings.word", 20, 4, embedding=True),
            low_rank("bert.layer.0.c_attn", 4, 6),
            Saved("bert.layer.0.query.bias", tensor(6)),
        ),
        MODEL,
        prefix="bert.",
    )
    assert names(resolved) == sorted(names(resolved))
    assert len(resolved.updates) == 5
    assert resolved.applied_count == 8
    assert resolved.dropped == ()


def test_what_matches_nothing_is_named_up_to_five():
    strays = [low_rank(f"bert.layer.{index}.gone", 4, 6) for index in range(7)]
    with pytest.raises(AdapterError, match="7 tensor") as caught:
        resolve(adapter(QUERY, *strays, base_name="org/base"), MODEL, prefix="bert.")
    message = str(caught.value)
    assert all(f"bert.layer.{index}.gone.weight" in message for index in range(5))
    assert "bert.layer.5.gone" not in message
    assert "and 2 more" in message
    assert "org/base" in message
    assert "--drop" in message
    assert caught.value.exit_code == 3


def test_a_wrapper_that_is_not_known_is_named():
    stray = low_rank("actor.base_model.model.bert.layer.0.query", 4, 6)
    with pytest.raises(AdapterError, match="match nothing") as caught:
        resolve(adapter(stray), MODEL, prefix="bert.")
    assert "'actor.'" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (low_rank("bert.layer.0.query", 5, 6), "the update is [6, 5], the weight [6, 4]"),
        (low_rank("bert.layer.0.query", 6, 4), "the update is [4, 6], the weight [6, 4]"),
        (low_rank("bert.layer.0.c_attn", 6, 4), "the update is [6, 4], the weight [4, 6]"),
        (
            low_rank("bert.embeddings.word", 4, 20, embedding=True),
            "the update is [4, 20], the weight [20, 4]",
        ),
        (low_rank("bert.embeddings.word", 4, 20), "the module is a Embedding"),
        (low_rank("bert.layer.0.query", 6, 4, embedding=True), "the module is a Linear"),
        (Saved("classifier.bias", tensor(4)), "the adapter has [4], the model [3]"),
        (Saved("classifier.weight", tensor(4, 3)), "the adapter has [4, 3], the model [3, 4]"),
        (Saved("bert.layer.0.norm.weight", tensor(4, 1)), "the adapter has [4, 1]"),
    ],
)
def test_what_does_not_fit_is_named_with_both_shapes(entry, said):
    with pytest.raises(AdapterError, match="do not fit") as caught:
        resolve(adapter(entry), MODEL, prefix="bert.")
    assert said in caught.value.message
    assert "the-adapter" in caught.value.message


def test_a_resizable_head_may_have_another_width():
    entries = (Saved("classifier.weight", tensor(7, 4)), Saved("classifier.bias", tensor(7)))
    resolved = resolve(adapter(*entries), MODEL, prefix="bert.", resizable=HEAD)
    assert names(resolved) == ["classifier.bias", "classifier.weight"]
    with pytest.raises(AdapterError, match="2 tensor"):
        resolve(adapter(*entries), MODEL, prefix="bert.")


@pytest.mark.parametrize("shape", [(7, 5), (7,), (), (7, 4, 1)])
def test_only_the_first_axis_of_a_head_may_differ(shape):
    with pytest.raises(AdapterError, match="do not fit"):
        resolve(
            adapter(Saved("classifier.weight", tensor(*shape))),
            MODEL,
            prefix="bert.",
            resizable=HEAD,
        )


# --------------------------------------------------------------------------------------- drop


def test_what_is_dropped_is_recorded_and_not_applied():
    entries = adapter(QUERY, Saved("classifier.weight", tensor(3, 4)), low_rank("stray", 1, 1))
    resolved = resolve(entries, MODEL, prefix="bert.", drop=["classifier.*", "stray*"])
    assert names(resolved) == ["bert.layer.0.query.weight"]
    assert resolved.dropped == ("stray.weight", "classifier.weight")
    assert resolved.applied_count == 2


@pytest.mark.parametrize("unused", ["clasifier.*", "CLASSIFIER.*", "classifier", "bert.layer.9*"])
def test_a_drop_pattern_that_matches_nothing_is_an_error(unused):
    entries = adapter(QUERY, Saved("classifier.weight", tensor(3, 4)))
    with pytest.raises(UsageError, match="matches no tensor") as caught:
        resolve(entries, MODEL, prefix="bert.", drop=["classifier.*", unused])
    assert unused in caught.value.message
    assert caught.value.exit_code == 2


def test_two_patterns_for_one_tensor_are_both_used():
    entries = adapter(QUERY, Saved("classifier.weight", tensor(3, 4)))
    resolved = resolve(entries, MODEL, prefix="bert.", drop=["classifier.*", "*.weight"])
    assert set(resolved.dropped) == {"classifier.weight", "bert.layer.0.query.weight"}
    resolved = resolve(entries, MODEL, prefix="bert.", drop=["classifier.*", "classifier.weight"])
    assert resolved.dropped == ("classifier.weight",)


# --------------------------------------------------------------------------- tied and doubled

TIED = (
    Parameter("model.embed.weight", (20, 4), "float32", "Embedding", aliases=("lm_head.weight",)),
    Parameter("model.norm.weight", (4,), "float32", "Norm"),
)


def test_a_tied_weight_that_is_saved_alike_under_both_names_stays_one():
    both = (Saved("lm_head.weight", tensor(20, 4)), Saved("model.embed.weight", tensor(20, 4)))
    found = resolve(adapter(*both), TIED, prefix="model.")
    (update,) = found.updates
    assert update.parameter.name == "model.embed.weight"
    assert update.saved is not None
    assert found.applied_count == 2


def test_one_side_of_a_tied_weight_that_is_left_out_does_not_change_both():
    both = (Saved("lm_head.weight", tensor(20, 4)), Saved("model.embed.weight", tensor(20, 4)))
    with pytest.raises(UnsupportedError, match="tied"):
        resolve(adapter(*both), TIED, prefix="model.", drop=["lm_head.*"])


@pytest.mark.parametrize(
    "entry",
    [
        low_rank("lm_head", 4, 20),
        low_rank("model.embed", 20, 4, embedding=True),
        low_rank("embed", 20, 4, embedding=True),
        Saved("lm_head.weight", tensor(20, 4)),
        Saved("model.embed.weight", tensor(20, 4)),
    ],
)
def test_a_tied_weight_is_refused_by_both_its_names(entry):
    with pytest.raises(UnsupportedError, match="tied") as caught:
        resolve(adapter(entry), TIED, prefix="model.")
    assert "untie" in (caught.value.hint or "")
    assert "lm_head.weight" in caught.value.message or "embed.weight" in caught.value.message
    assert caught.value.exit_code == 4


def test_a_saved_weight_that_is_updated_too_is_both():
    saved = Saved("bert.layer.0.query.weight", tensor(6, 4))
    for entries in ((QUERY, saved), (saved, QUERY)):
        resolved = resolve(adapter(*entries), MODEL, prefix="bert.")
        (update,) = resolved.updates
        assert update.saved == saved
        assert update.low_rank == QUERY
        assert resolved.applied_count == 3


def test_one_parameter_changed_twice_is_refused():
    with pytest.raises(UnsupportedError, match="twice"):
        resolve(adapter(QUERY, BARE_QUERY), MODEL, prefix="bert.")
