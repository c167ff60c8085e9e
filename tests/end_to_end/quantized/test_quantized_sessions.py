"""`open_export` of quantized exports in each mode, and adapters that are not in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import lora_export as lx
from lora_export.core.manifest import read_manifest
from lora_export.exports.at_load import weights_bytes
from tests.cli.exports import peft_model, run_torch
from tests.helpers.builds import build
from tests.helpers.slow import but_the_first

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

CLASSES = "text-classification"
IDS = np.random.default_rng(3).integers(3, 200, (2, 7))
FEEDS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
ROUNDED = 0.15
"""The largest relative L2 error of outputs of int4 in a session that rounds activations too."""


def outputs(session: lx.Session, name: str | None) -> np.ndarray:
    return np.asarray(session.run(FEEDS, adapter=name)["logits"])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("deberta-v2", {"target_modules": ["query_proj", "key_proj"]}),  # each read by two nodes
        pytest.param("roberta", {"use_dora": True}, marks=pytest.mark.slow),
        pytest.param("roberta", {"target_modules": ["word_embeddings", "value"]},
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
@pytest.mark.parametrize("block_size", ["all", 16])
def test_an_adapter_is_merged_into_int8_when_the_session_opens(
    tiny: TinyModels, tmp_path: Path, kind: str, settings: dict[str, Any], block_size: Any
) -> None:
    base = tiny.base(kind, CLASSES)
    adapter = tiny.adapter(base, seed=6, strength=0.3, **settings)
    root = tmp_path / "out"
    build(base, {}, root, quantize={"weights": "int8", "block_size": block_size})
    with lx.open_export(root, adapters={"new": adapter}) as session:
        assert session.ways("new") == ("merge_at_load",)
        found, plain = outputs(session, "new"), outputs(session, None)
    expected = run_torch(peft_model(base, adapter, CLASSES, labels_count=3), FEEDS)
    effect = float(np.linalg.norm(found - plain))
    assert float(np.linalg.norm(found - expected)) < 0.1 * effect


@pytest.mark.parametrize("mode", but_the_first(["swappable", "merged", "batched"]))
def test_each_mode_runs_its_adapters(tiny: TinyModels, tmp_path: Path, mode: str) -> None:
    base = tiny.base("roberta", CLASSES)
    one, two = (tiny.adapter(base, seed=seed, strength=0.3) for seed in (5, 6))
    found = {}
    for kind, settings in (("float", {}), ("int4", {"quantize": "int4"})):
        build(base, {"one": one}, tmp_path / kind, mode=mode, **settings)
        with lx.open_export(tmp_path / kind) as session:
            found[kind] = outputs(session, "one")
    error = np.linalg.norm(found["int4"] - found["float"]) / np.linalg.norm(found["float"])
    assert 0 < error < ROUNDED
    manifests = {kind: read_manifest(tmp_path / kind) for kind in found}
    taken = {kind: weights_bytes(each, mapped=False) for kind, each in manifests.items()}
    assert taken["int4"] < 0.4 * taken["float"]
    with (
        pytest.raises(lx.UnsupportedError, match="holds as int4") as caught,
        lx.open_export(tmp_path / "int4", adapters={"two": two}) as session,
    ):
        outputs(session, "two")
    assert "lora-export add" in str(caught.value.hint)
