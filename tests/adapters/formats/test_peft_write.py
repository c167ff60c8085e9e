"""PEFT's folder from a canonical adapter: PEFT loads it and computes what it computed before."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from lora_export.adapters.canonical import Adapter, Added, LowRank, Rows, Saved
from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.formats.peft_write import _settings, write_peft
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import UnsupportedError
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import MemoryTensor, read_all
from tests.cli.exports import peft_model, run_torch
from tests.helpers.models import load_tiny
from tests.helpers.tied import FAMILIES, distance, train, unmerged

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

TASK = "text-classification"
FEEDS = {"input_ids": np.arange(3, 21).reshape(2, 9), "attention_mask": np.ones((2, 9), np.int64)}


def read(folder: Path) -> Adapter:
    return read_adapter(folder, name="a", source="a")


def rewritten(adapter: Adapter, folder: Path, **settings_: Any) -> Path:
    folder.mkdir()
    write_peft(adapter, folder, **settings_)
    return folder


def output(base: Path, adapter: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_torch(peft_model(base, adapter, TASK, labels_count=3), FEEDS)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("bert", {}),
    "rslora": ("bert", {"use_rslora": True, "alpha": 3}),
    "patterns": (
        "bert",
        {
            "rank_pattern": {"layer.0.attention.self.query": 2, "value": 3},
            "alpha_pattern": {"layer.1.attention.self.query": 5, "^nothing": 1},
        },
    ),
    "conv1d": ("gpt2", {"fan_in_fan_out": True}),
    "head of parts": ("roberta", {}),
    "more saved": ("bert", {"modules_to_save": ["LayerNorm"]}),
    "all biases": ("bert", {"bias": "all"}),
    "biases of targets": ("bert", {"bias": "lora_only"}),
    "embedding": ("bert", {"target_modules": ["word_embeddings", "query"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_same_from_the_folder(case: str, tiny: TinyModels, tmp_path: Path):
    kind, more = CASES[case]
    base = tiny.base(kind, TASK)
    original = tiny.adapter(base, seed=5, **more)
    adapter = read(original)
    copy = rewritten(adapter, tmp_path / "copy")
    expected, found = output(base, original), output(base, copy)
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
    plain = run_torch(load_tiny(base, TASK, labels_count=3), FEEDS)
    assert np.linalg.norm(expected - plain) > 1e-3 * np.linalg.norm(expected)
    again = read(copy)
    assert {u.module: u.scale for u in again.low_rank} == {
        u.module: u.scale for u in adapter.low_rank
    }
    assert {s.parameter for s in again.saved} == {s.parameter for s in adapter.saved}


def by_hand(folder: Path, **changes: Any) -> Adapter:
    """Read factors, magnitudes and biases on B of an adapter that PEFT wrote, scale 2."""
    tensors, _ = read_header(folder / "adapter_model.safetensors")
    plain = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
    updates, added = [], []
    for key in [key for key in plain if key.endswith("lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight")
        magnitude = plain.get(f"{module}.lora_magnitude_vector")
        b = plain[f"{module}.lora_B.weight"]
        updates.append(LowRank(module, plain[key], b, 2.0, magnitude=magnitude))
        if f"{module}.lora_B.bias" in plain:
            added.append(Added(f"{module}.bias", plain[f"{module}.lora_B.bias"], 2.0))
    saved = [Saved(k, v) for k, v in plain.items() if k.startswith("classifier.")]
    rows = [
        Rows(f"{key.removesuffix('.token_adapter.trainable_tokens_delta')}.weight", (4, 7), value)
        for key, value in plain.items()
        if key.endswith("trainable_tokens_delta")
    ]
    return Adapter(
        name="a", source="a", folder=folder, format="peft", low_rank=tuple(updates),
        saved=tuple(saved), task_type="SEQ_CLS", base_name=None, sha256="0" * 64, config={},
        added=tuple(added), rows=tuple(rows), **changes,
    )  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"trainable_token_indices": {"word_embeddings": [4, 7]}},
    ],
    ids=["dora", "bias on B", "token rows"],
)
def test_what_the_variants_add_is_written_too(more, tiny: TinyModels, tmp_path: Path):
    base = tiny.base("bert", TASK)
    original = tiny.adapter(base, seed=6, r=4, alpha=8, **more)
    adapter = by_hand(original)
    assert adapter.added or adapter.rows or adapter.low_rank[0].magnitude
    copy = rewritten(adapter, tmp_path / "copy")
    expected, found = output(base, original), output(base, copy)
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("family", "rows"),
    [
        ("bart", {"embed_tokens": [3, 5]}),
        ("bart", {"shared": [3, 5], "encoder.embed_tokens": [3, 4]}),
        ("marian", {"embed_tokens": [3, 5]}),
        ("llama", {"embed_tokens": [3, 5], "lm_head": [5, 3]}),
    ],
)
def test_rows_of_several_embeddings_keep_their_setting(family: str, rows: Any, tmp_path: Path):
    """One key for two embeddings is not the same to PEFT as one key for each."""
    model = FAMILIES[family]
    base = tmp_path / "base"
    model.base().save_pretrained(base)
    expected = train(
        model, base, tmp_path / "trained",
        target_modules=[model.inner], trainable_token_indices=rows,
    )  # fmt: skip
    folder = rewritten(read(tmp_path / "trained"), tmp_path / "written")
    assert distance(unmerged(model, base, folder), expected) < 1e-6


def test_rows_of_several_embeddings_without_their_setting_are_refused(tmp_path: Path):
    model = FAMILIES["bart"]
    base = tmp_path / "base"
    model.base().save_pretrained(base)
    train(
        model, base, tmp_path / "trained",
        target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 5]},
    )  # fmt: skip
    adapter = read(tmp_path / "trained")
    config = {**adapter.config, "trainable_token_indices": None}
    with pytest.raises(UnsupportedError, match="does not name them one by one"):
        rewritten(replace(adapter, config=config), tmp_path / "written")


def test_what_peft_cannot_hold_is_refused(tiny: TinyModels, tmp_path: Path):
    adapter = read(tiny.adapter(tiny.base("bert", TASK), seed=5))
    ones = MemoryTensor("m", DTYPES["float32"], np.ones(32, np.float32))
    first, *rest = adapter.low_rank
    partly = replace(adapter, low_rank=(replace(first, magnitude=ones), *rest))
    with pytest.raises(UnsupportedError, match="magnitude on some modules only"):
        write_peft(partly, tmp_path)
    with pytest.raises(UnsupportedError, match="no low-rank update"):
        write_peft(replace(adapter, low_rank=()), tmp_path)
    elsewhere = replace(adapter, added=(Added("pooler.dense.bias", ones, 1.0),))
    with pytest.raises(UnsupportedError, match=r"addition to 'pooler.dense.bias'"):
        write_peft(elsewhere, tmp_path)


def test_the_dtype_is_kept(tiny: TinyModels, tmp_path: Path):
    adapter = read(tiny.adapter(tiny.base("bert", TASK), seed=5, dtype="bfloat16"))
    again = read(rewritten(adapter, tmp_path / "copy"))
    for old, new in zip(adapter.low_rank, again.low_rank, strict=True):
        assert new.a.dtype.name == "bfloat16"
        assert np.array_equal(read_all(old.a), read_all(new.a))


@given(
    rows=st.dictionaries(
        st.lists(st.sampled_from(["a", "b", "a1", "1", "x.y", "q-r"]), min_size=1, max_size=4).map(
            ".".join
        ),
        st.tuples(st.integers(1, 9), st.floats(-64, 64, allow_nan=False)),
        min_size=1,
        max_size=8,
    )
)
@settings(deadline=None)
def test_pefts_own_matching_gives_each_module_its_rank_and_scale(rows):
    def zeros(*shape: int) -> MemoryTensor:
        return MemoryTensor("x", DTYPES["float32"], np.zeros(shape, np.float32))

    updates = tuple(LowRank(n, zeros(r, 2), zeros(3, r), s) for n, (r, s) in rows.items())
    adapter = Adapter("a", "a", None, "x", updates, (), None, None, "0" * 64, {})  # type: ignore[arg-type]
    config = json.loads(json.dumps(_settings(adapter, conv1d=False)))
    for module, (rank, scale) in rows.items():
        found = [
            config[pattern].get(get_pattern_key(config[pattern].keys(), module), config[default])
            for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
        ]
        assert found[0] == rank
        assert found[1] / found[0] == pytest.approx(scale, rel=1e-15, abs=1e-300)
