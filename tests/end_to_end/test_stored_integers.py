"""A swappable export of a GPTQ base computes with the integers that the adapter was trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_export.core.tensors import read_all
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.quantization.packing import unpack_int4
from tests.cli.running import call
from tests.helpers.hand_packed import pack_gptq
from tests.helpers.quantized_bases import ADAPTER, LLAMA_NF4, save_quantized

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def gptq(tmp_path):
    """The tiny Llama with its weights as GPTQ stores them, and the codes of each weight."""
    folder = tmp_path / "gptq"
    folder.mkdir()
    given = open_checkpoint(LLAMA_NF4)
    tensors, codes = {}, {}
    for at, (name, tensor) in enumerate(given.tensors.items()):
        if name not in given.quantized.weights:
            tensors[name] = read_all(tensor)
            continue
        parts, values = pack_gptq(*tensor.shape, group_size=64, symmetric=True, seed=at)
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{key}": each for key, each in parts.items()}
        scales = np.repeat(parts["scales"].astype(np.float32), 64, 0)
        codes[module] = np.rint(values.T.astype(np.float32) / scales).astype(int)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True}
    config = {**given.config, "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    save_quantized(folder / "model.safetensors", tensors)
    return folder, codes


@pytest.mark.slow
def test_a_swappable_export_keeps_the_integers(gptq, tmp_path, capsys):
    base, codes = gptq
    out = tmp_path / "out"
    found = call(capsys, "merge-and-build", "--base", base, "--adapter", f"a={ADAPTER}",
                 "--mode", "swappable", "--quantize", "int4", "--no-latency",
                 "--out", out)  # fmt: skip
    assert found.code == 0, found.err
    assert f"{len(codes)} weights keep the integers" in found.err
    manifest = json.loads((out / "lora_export.json").read_text())["base"]
    assert manifest["carried"] == len(codes) == 14
    assert manifest["quantization"]["block_size"] == 64
    held = load_file(out / "weights" / "base.safetensors")
    for module, q in codes.items():
        stored = unpack_int4(held[f"{module}.weight.quantized"], q.shape)
        assert np.array_equal(stored, q), module
    report = json.loads((out / "reports" / "quantization.json").read_text())
    assert report["graphs"]
