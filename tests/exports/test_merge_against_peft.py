"""Every architecture, dtype and variant: the exported weights are those of PEFT's own merge."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_export.core.dtypes import by_name
from lora_export.core.manifest import Manifest, read_manifest
from tests.helpers.builds import build, merged_by_peft, model_values, read_graph
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLASSIFICATION, GENERATION = "text-classification", "text-generation"


@dataclass(frozen=True)
class Case:
    """A base of one kind as it is published, and what it is exported to."""

    kind: str
    task: str
    base_task: str
    dtype: str = "float32"
    target: str = "onnxruntime-cpu"

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype}" + (" bare" if self.base_task != self.task else "")


CASES = (
    Case("bert", CLASSIFICATION, CLASSIFICATION),
    Case("roberta", CLASSIFICATION, "fill-mask"),
    Case("distilbert", CLASSIFICATION, "feature-extraction"),
    Case("deberta-v2", CLASSIFICATION, CLASSIFICATION),
    Case("gpt2", GENERATION, "feature-extraction"),
    Case("llama", GENERATION, GENERATION),
    Case("llama-tied", GENERATION, GENERATION),
    Case("bert", CLASSIFICATION, CLASSIFICATION, "float16"),
    Case("llama", GENERATION, GENERATION, "bfloat16", "onnxruntime-cuda"),
)

ALL_LINEAR = {
    "bert": ["query", "key", "value", "dense"],
    "roberta": ["query", "key", "value", "intermediate.dense", "output.dense"],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "intermediate.dense", "output.dense"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
ALL_LINEAR["llama-tied"] = ALL_LINEAR["llama"]

EMBEDDING = {"bert": "word_embeddings", "roberta": "word_embeddings", "llama": "embed_tokens"}
SAVED = {
    "bert": ["classifier", "pooler"],
    "roberta": ["classifier"],
    "distilbert": ["classifier", "pre_classifier"],
    "deberta-v2": ["classifier", "pooler"],
    "gpt2": ["ln_f"],
    "llama": ["lm_head"],
    "llama-tied": ["norm"],
}


def variants(kind: str) -> dict[str, dict[str, Any]]:
    """Return the settings of each adapter for `kind`."""
    last = ALL_LINEAR[kind][0]
    table: dict[str, dict[str, Any]] = {
        "plain": {},
        "rslora": {"use_rslora": True, "alpha": 3},
        "all-linear": {"target_modules": ALL_LINEAR[kind], "r": 3},
        "patterns": {
            "target_modules": ALL_LINEAR[kind],
            # in the order that PEFT saves them (sorted): the first that matches wins
            "rank_pattern": {r".*\.1\..*": 7, last: 2},
            "alpha_pattern": {r"[a-z.]*\.0\..*": 31, last: 5},
        },
        "patterns-rslora": {
            "target_modules": ALL_LINEAR[kind],
            "rank_pattern": {last: 6},
            "use_rslora": True,
        },
        "saved": {"modules_to_save": SAVED[kind]},
        "large-r": {"r": 40, "alpha": 7},
        "half-precision": {"dtype": "float16"},
        "brain-precision": {"dtype": "bfloat16"},
    }
    if kind not in {"llama", "llama-tied"}:  # Llama has no biases
        table["bias-all"] = {"bias": "all"}
        table["bias-lora-only"] = {"bias": "lora_only"}
    if kind == "gpt2":
        table["fan-in-fan-out"] = {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_fc"]}
    if kind in EMBEDDING:
        table["embedding"] = {"target_modules": [EMBEDDING[kind], last]}
    return table


@dataclass(frozen=True)
class Built:
    """An export that holds the adapter ``name``, and what it was made from."""

    export_dir: Path
    base: Path
    adapter: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    """Build each variant once, all variants of a case into one export."""
    roots: dict[Case, Path] = {}
    made: dict[tuple[Case, str], Built] = {}

    def get(case: Case, name: str = "plain") -> Built:
        if case not in roots:
            roots[case] = tmp_path_factory.mktemp("export") / "out"
        if (case, name) not in made:
            # The published base may be another class than the adapter's model: it then has other
            # names, or no head. The adapter is trained on what transformers makes of it.
            base = tiny.base(case.kind, case.base_task, dtype=case.dtype)
            adapter = tiny.adapter(base, task=case.task, **variants(case.kind)[name])
            outcome = build(
                base, {name: adapter}, roots[case], task=case.task, targets=[case.target]
            )
            made[case, name] = Built(roots[case], base, adapter, outcome.manifest)
        return made[case, name]

    return get


peft_merge = functools.cache(merged_by_peft)


def params() -> Iterator[Any]:
    """Yield each adapter of each case; kinds whose like is traced anyway are slow."""
    for case in CASES:
        slow = case.kind in {"deberta-v2", "llama-tied"} or case.dtype != "float32"
        for name in variants(case.kind):
            yield pytest.param(
                case, name, id=f"{case} {name}", marks=pytest.mark.slow if slow else ()
            )


@pytest.mark.parametrize(("case", "name"), list(params()))
def test_the_merged_graph_holds_what_peft_merges(case, name, built):
    export = built(case, name)
    expected = peft_merge(export.base, export.adapter, case.task)
    found = read_graph(export.export_dir, name)
    assert len(found) > 10
    dtype = by_name(case.dtype)
    for parameter, values in found.items():
        wanted = expected[parameter]
        assert values.shape == wanted.shape, parameter
        if wanted.dtype.kind != "f":
            np.testing.assert_array_equal(values, wanted)
            continue
        assert values.dtype == dtype.numpy, parameter
        wide = values.astype(np.float64)
        if case.dtype == "float32":
            error = np.linalg.norm(wide - wanted) / np.linalg.norm(wanted)
            assert error <= 1e-6, f"{parameter}: {error:.3g}"
        else:  # the nearest number, but for ties that float32 decides otherwise
            nearest = wanted.astype(np.float32).astype(dtype.numpy).astype(np.float64)
            assert np.mean(wide != nearest) < 0.01, parameter
            np.testing.assert_allclose(wide, nearest, rtol=2.0**-6, atol=1e-6, err_msg=parameter)


@pytest.mark.parametrize(("case", "name"), list(params()))
def test_the_adapters_file_holds_what_changed_and_nothing_else(case, name, built):
    export = built(case, name)
    stored = load_file(export.export_dir / "weights" / f"{name}.safetensors")
    merged, base = read_graph(export.export_dir, name), read_graph(export.export_dir, "base")
    changed = {key for key, value in merged.items() if value.tobytes() != base[key].tobytes()}
    assert changed == set(stored)
    record = export.manifest.adapters[name]
    assert record.tensors_applied == record.tensors_total
    trained = peft_merge(export.base, export.adapter, case.task)
    untrained = model_values(load_tiny(export.base, case.task, labels_count=3, dtype="float32"))
    assert changed == {key for key in merged if (trained[key] != untrained[key]).any()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_base_graph_holds_the_checkpoint_bit_for_bit(case, built):
    export = built(case)
    checkpoint = load_file(export.base / "model.safetensors")
    manifest = read_manifest(export.export_dir)
    missing = set(manifest.graphs["base"].missing)
    held = read_graph(export.export_dir, "base")
    seen = 0
    for name, (use,) in manifest.parameters.items():
        if use.initializer in missing:
            assert not held[use.initializer].any()
            continue
        assert checkpoint[name].tobytes() == np.ascontiguousarray(held[use.initializer]).tobytes()
        seen += 1
    assert seen > 10


@pytest.mark.parametrize(("name", "rank"), [("plain", 4), ("large-r", 40), ("patterns", 7)])
def test_rank_dtype_and_origin_are_recorded(name, rank, built):
    manifest = built(CASES[0], name).manifest
    assert manifest.base.dtype == "float32"
    assert manifest.adapters[name].merged_from == "checkpoint"
    assert manifest.adapters[name].rank == rank
