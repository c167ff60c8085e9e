"""Adapters merged by the server's code, against PEFT's own merge in float64."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from lora_export.triton.repository import write_repository
from lora_export.triton.serving.index import parse_index
from lora_export.triton.serving.runners import Settings, load_runner, merged_values
from lora_export.triton.serving.tensors import TensorError, read_tensors
from tests.helpers.builds import build, merged_by_peft
from tests.helpers.models import TARGETS

TASK = "text-classification"


@pytest.mark.parametrize("kind", ["bert", "gpt2"])  # a Linear, and Conv1D
def test_a_merge_at_load_is_pefts_merge(tiny, tmp_path, kind):
    base = tiny.base(kind, TASK)
    adapters = {
        "plain": tiny.adapter(base, seed=1, target_modules=[*TARGETS[kind]], bias="all"),
        "dora": tiny.adapter(base, seed=2, use_dora=kind == "bert"),
    }
    export = build(base, adapters, tmp_path / "out", mode="swappable").output
    write_repository(export, tmp_path / "models", name="m", way="merge_at_load")
    folder = tmp_path / "models/m/1/export"
    index = parse_index((folder / "serving.json").read_bytes(), folder)
    for name, adapter in adapters.items():
        pack, _ = read_tensors(folder / index.adapters[name].file)
        found = merged_values(folder, index, pack)
        wanted = merged_by_peft(base, adapter, TASK)
        assert len(found) > 2
        for initializer, value in found.items():
            model = wanted[initializer]
            transposed = model.ndim == 2 and model.shape != value.shape
            square = model.ndim == 2 and model.shape[0] == model.shape[1] and kind == "bert"
            model = model.T if transposed or square else model
            np.testing.assert_allclose(value, model, rtol=1e-5, atol=1e-6, err_msg=initializer)


def test_a_pack_of_another_base_or_half_an_update_is_refused(tiny, tmp_path):
    base = tiny.base("bert", TASK)
    export = build(base, {"a": tiny.adapter(base, seed=1)}, tmp_path / "out", mode="swappable")
    write_repository(export.output, tmp_path / "models", name="m", way="merge_at_load")
    folder = tmp_path / "models/m/1/export"
    table = json.loads((folder / "serving.json").read_text())
    index = parse_index(json.dumps(table).encode(), folder)
    pack, _ = read_tensors(folder / index.adapters["a"].file)
    half = {name: each for name, each in pack.items() if not name.endswith("lora_B.weight")}
    with pytest.raises(TensorError, match="half"):
        merged_values(folder, index, half)
    other = parse_index(json.dumps({**table, "fingerprint": "0" * 64}).encode(), folder)
    with pytest.raises(TensorError, match="another base"):
        load_runner(folder, other, "a", shared=None, settings=Settings())
    shutil.rmtree(folder / "adapters")
    with pytest.raises(FileNotFoundError):
        load_runner(folder, index, "a", shared=None, settings=Settings())
