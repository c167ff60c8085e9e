"""Adapters cut to fewer directions, and what one would cost; NumPy and the paper know."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.adapters.formats.detect import read_adapter
from lora_export.commands.analyze.analysis import compress_to
from lora_export.commands.analyze.compress import Cut
from lora_export.commands.analyze.cost import cost_of
from lora_export.core.errors import ExportDirectoryError, UnsupportedError, UsageError
from lora_export.core.parameters import Parameter
from lora_export.core.tensors import read_all
from tests.helpers.peft_files import pair, write_peft

MODULES = {"layer.0.query": (20, 30), "layer.1.query": (20, 30), "layer.1.out": (30, 20)}


@pytest.fixture
def adapter(tmp_path):
    tensors = {}
    for seed, (module, (inputs, outputs)) in enumerate(MODULES.items()):
        tensors |= pair(module, inputs, outputs, 8, seed=seed)
    return write_peft(tmp_path / "adapter", tensors, r=8, lora_alpha=12)


def deltas(folder) -> dict[str, np.ndarray]:
    adapter = read_adapter(folder, name="a", source=str(folder))
    return {
        u.module: u.scale * read_all(u.b).astype(float) @ read_all(u.a).astype(float)
        for u in adapter.low_rank
    }


def best(delta: np.ndarray, rank: int) -> np.ndarray:
    u, s, vh = np.linalg.svd(delta)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def test_a_rank_is_the_best_of_that_rank(adapter, tmp_path) -> None:
    done = compress_to(adapter, tmp_path / "small", Cut(rank=3))
    before, after = deltas(adapter), deltas(tmp_path / "small")
    for row in done.modules:
        exact = best(before[row.module], 3)
        np.testing.assert_allclose(after[row.module], exact, atol=1e-5)
        lost = np.linalg.norm(before[row.module] - after[row.module])
        assert row.relative_error == pytest.approx(
            lost / np.linalg.norm(before[row.module]), rel=1e-4
        )
        assert (row.rank_before, row.rank) == (8, 3)
    assert done.bytes_after < done.bytes_before * 0.4


def test_an_energy_is_kept_in_every_module(adapter, tmp_path) -> None:
    done = compress_to(adapter, tmp_path / "small", Cut(energy=0.9))
    assert all(row.relative_error**2 <= 0.1 + 1e-6 for row in done.modules)
    tighter = compress_to(adapter, tmp_path / "tight", Cut(energy=0.999))
    assert [t.rank for t in tighter.modules] > [d.rank for d in done.modules]


def test_the_loss_includes_the_rounding_of_what_is_stored(tmp_path) -> None:
    tensors = {
        name: each.astype(np.float16) for name, each in pair("layer.0.query", 20, 30, 2).items()
    }
    low = {  # rank 4 whose product has rank 2: nothing but rounding can be lost
        name: np.concatenate([each, each], axis=0 if "lora_A" in name else 1)
        for name, each in tensors.items()
    }
    given = write_peft(tmp_path / "adapter", low, r=4)
    (row,) = compress_to(given, tmp_path / "small", Cut(energy=0.9999999)).modules
    assert row.rank == 2
    assert 1e-5 < row.relative_error < 2e-3


def test_what_cannot_be_cut_is_refused(adapter, tmp_path) -> None:
    with pytest.raises(ExportDirectoryError, match="exists already"):
        compress_to(adapter, adapter, Cut(rank=2))
    for wrong in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}, {}, {"rank": 2, "energy": 0.5}):
        with pytest.raises(UsageError):
            Cut(**wrong)
    tensors = pair("layer.0.query", 20, 30)
    tensors["base_model.model.layer.0.query.lora_magnitude_vector"] = np.ones(30, np.float32)
    dora = write_peft(tmp_path / "dora", tensors, use_dora=True)
    with pytest.raises(UnsupportedError, match="DoRA"):
        compress_to(dora, tmp_path / "small", Cut(rank=1))
    assert not (tmp_path / "small").exists()


def test_gpt3_costs_what_the_paper_says() -> None:
    layers, width = 96, 12288
    parameters = [
        Parameter(f"model.layers.{i}.self_attn.{name}.weight", (width, width), "float16", "Linear")
        for i in range(layers)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]
    found = cost_of(parameters, ["q_proj", "v_proj"], rank=4, dtype="float16")
    assert found.modules == 2 * layers
    assert found.trained_parameters == 2 * (2 * layers) * width * 4  # 2·L·d·r of section 4.2
    assert 35e6 < found.adapter_bytes < 38e6  # "35MB"
    with pytest.raises(UsageError, match="no matrix of the model is called 'query'"):
        cost_of(parameters, ["query"], rank=4, dtype="float16")
