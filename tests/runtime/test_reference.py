"""The reference in torch: an independent path, checked for completeness, its scale set to zero."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.errors import AdapterError
from lora_export.graph.spec import tasks
from lora_export.runtime.reference import Reference, estimate_bytes
from lora_export.weights.checkpoint import open_checkpoint
from tests.cli.exports import peft_model, run_torch
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

TASK = "text-classification"


@pytest.fixture
def feeds():
    ids = np.random.default_rng(0).integers(3, 200, (2, 9))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def reference_of(base: Path, adapter: Path | None) -> Reference:
    read = read_adapter(adapter, name="a", source="a") if adapter else None
    return Reference(open_checkpoint(base), tasks.by_name(TASK), adapter=read, labels_count=3)


def test_reference_is_peft(tiny: TinyModels, feeds) -> None:
    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, seed=1)
    expected = run_torch(peft_model(base, adapter, TASK), feeds)
    assert np.allclose(reference_of(base, adapter).run(feeds), expected, atol=1e-6)
    plain = run_torch(load_tiny(base, TASK), feeds)
    assert np.allclose(reference_of(base, None).run(feeds), plain, atol=1e-6)


def test_without_low_rank_keeps_the_head_and_comes_back(tiny: TinyModels, feeds) -> None:
    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, seed=1)
    reference = reference_of(base, adapter)
    before = reference.run(feeds)
    with reference.without_low_rank():
        inside = reference.run(feeds)
    model = load_tiny(base, TASK)
    head = load_file(adapter / "adapter_model.safetensors")
    import torch

    with torch.no_grad():
        for name in ("weight", "bias"):
            value = torch.from_numpy(head[f"base_model.model.classifier.{name}"])
            getattr(model.classifier, name).copy_(value)
    assert np.allclose(inside, run_torch(model, feeds), atol=1e-6)
    assert not np.allclose(inside, before, atol=1e-3)
    assert np.array_equal(reference.run(feeds), before)


def test_factors_that_peft_passes_over_are_an_error(tiny, tmp_path: Path) -> None:
    """PEFT only warns about keys that it does not know; the reference would be the base."""
    base = tiny.base("bert", TASK)
    shutil.copytree(tiny.adapter(base, seed=1), tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    renamed = {k.replace(".query.", ".other."): v for k, v in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    config["target_modules"].append("other")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"PEFT did not load.*other"):
        reference_of(base, tmp_path / "a")


def test_estimate_covers_the_weights_in_float32(tiny: TinyModels) -> None:
    small, large = (
        estimate_bytes(open_checkpoint(tiny.base("bert", TASK, vocab_size=n)), tokens=64)
        for n in (200, 40_200)
    )
    assert large - small >= 40_000 * 32 * 4


def test_an_adapter_in_the_bases_folder_is_not_the_base(tiny: TinyModels, feeds, tmp_path) -> None:
    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, seed=1)
    crowded = shutil.copytree(base, tmp_path / "base")
    for file in adapter.iterdir():
        if file.name.startswith("adapter_"):
            shutil.copy(file, crowded)
    plain = run_torch(load_tiny(base, TASK), feeds)
    assert np.allclose(reference_of(crowded, None).run(feeds), plain, atol=1e-6)
    expected = run_torch(peft_model(base, adapter, TASK), feeds)
    assert np.allclose(reference_of(crowded, adapter).run(feeds), expected, atol=1e-6)


@pytest.mark.parametrize(
    "renamed",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace("base_model.model.bert.", "base_model.model."),
        lambda key: "module." + key.replace("layer.0.", "layer.0._orig_mod."),
        lambda key: key.replace(".lora_A.", ".lora_A.sql.").replace(".lora_B.", ".lora_B.sql."),
    ],
    ids=["no prefix", "bare model", "wrapped", "named"],
)
def test_other_names_are_read_as_the_models(renamed, tiny: TinyModels, feeds, tmp_path) -> None:
    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, seed=1)
    expected = run_torch(peft_model(base, adapter, TASK), feeds)
    other = shutil.copytree(adapter, tmp_path / "adapter")
    file = other / "adapter_model.safetensors"
    save_file({renamed(key): value for key, value in load_file(file).items()}, file)
    assert np.allclose(reference_of(base, other).run(feeds), expected, atol=1e-6)
