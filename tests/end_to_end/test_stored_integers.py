"""Exports of GPTQ and AWQ bases compute with the integers that the adapter was trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_export.core.tensors import read_all
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.quantization.packing import unpack_int4
from tests.cli.running import call
from tests.helpers.dequantized import dequantized, fused_products
from tests.helpers.hand_packed import pack_awq, pack_gptq
from tests.helpers.quantized_bases import ADAPTER, LLAMA_NF4, save_quantized

LAYER = "model.layers.0.mlp.up_proj"


def save_packed(folder, pack, settings, **options):
    """Write the tiny Llama packed by `pack`; return its folder, and the stored tensors."""
    folder.mkdir()
    given = open_checkpoint(LLAMA_NF4)
    tensors = {}
    for at, (name, tensor) in enumerate(given.tensors.items()):
        if name not in given.quantized.weights:
            tensors[name] = read_all(tensor)
            continue
        parts, _ = pack(*tensor.shape, group_size=64, seed=at, **options)
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{key}": each for key, each in parts.items()}
    config = {**given.config, "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    save_quantized(folder / "model.safetensors", tensors)
    return folder, tensors


@pytest.fixture
def gptq(tmp_path):
    """The tiny Llama with its weights as GPTQ stores them, and the codes of each weight."""
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True}
    folder, tensors = save_packed(tmp_path / "gptq", pack_gptq, settings, symmetric=True)
    return folder, {name: each[0] - 8 for name, each in codes_of(tensors).items()}


def nibbles(words, order=range(8)):
    """Return the eight codes of each word, ``[..., 8]``."""
    return np.stack([(words.view(np.uint32) >> np.uint32(4 * k)) & 15 for k in order], -1)


def codes_of(tensors):
    """Return codes ``[in, out]`` and zero points ``[groups, out]`` of each module, 0 to 15."""
    found = {}
    for name, words in tensors.items():
        if not name.endswith(".qweight"):
            continue
        module, zeros = name.removesuffix(".qweight"), tensors[name.replace("qweight", "qzeros")]
        outputs = tensors[f"{module}.scales"].shape[1]
        if words.shape[1] == outputs:
            q = nibbles(words).swapaxes(1, 2).reshape(-1, outputs)
            z = (nibbles(zeros).reshape(len(zeros), -1) + 1) & 15
        else:
            order = (0, 4, 1, 5, 2, 6, 3, 7)
            q, z = (nibbles(each, order).reshape(len(each), -1) for each in (words, zeros))
        found[module] = (q.astype(int), z.astype(int))
    return found


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


def build(capsys, base, out, mode, *more):
    return call(capsys, "merge-and-build", "--base", base, "--adapter", f"a={ADAPTER}",
                "--mode", mode, "--quantize", "int4", "--no-latency", "--dtype", "float32",
                "--out", out, *more)  # fmt: skip


CASES = {
    "awq": (pack_awq, {"quant_method": "awq", "bits": 4, "group_size": 64}, {}),
    "gptq": (
        pack_gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": 64},
        {"symmetric": False},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode", "form"),
    [("awq", "swappable", "portable"), ("awq", "batched", "portable"), ("awq", "swappable", "ort"),
     ("gptq", "swappable", "portable")],
)  # fmt: skip
def test_zero_points_are_kept_bit_for_bit(kind, mode, form, tmp_path, capsys):
    pack, settings, options = CASES[kind]
    base, tensors = save_packed(tmp_path / "base", pack, settings, **options)
    out = tmp_path / "out"
    found = build(capsys, base, out, mode, *(["--graph-form", form] if form != "portable" else []))
    assert found.code == 0, found.err
    assert "14 weights keep the integers" in found.err
    held = load_file(out / "weights" / "base.safetensors")
    for module, (q, z) in codes_of(tensors).items():
        name = f"{module}.weight"
        assert np.array_equal(unpack_int4(held[f"{name}.quantized"], q.shape), q - 8), module
        assert np.array_equal(unpack_int4(held[f"{name}.zero_point"], z.shape), z - 8), module
        scales = tensors[f"{module}.scales"]
        assert np.array_equal(held[f"{name}.scale"], scales.astype(np.float32))
    values = dequantized(out)
    for name, tensor in open_checkpoint(base).tensors.items():
        if f"{name}.zero_point" in held:
            assert np.array_equal(values[name].astype(np.float16), read_all(tensor)), name
    assert fused_products(out / f"{mode}.onnx", tmp_path) >= 14


@pytest.mark.slow
def test_what_a_merge_changes_has_no_zero_points(tmp_path, capsys):
    pack, settings, options = CASES["awq"]
    base, _ = save_packed(tmp_path / "base", pack, settings, **options)
    build(capsys, base, tmp_path / "out", "merged")  # random weights in int4 drown the adapter
    held = load_file(tmp_path / "out" / "weights" / "base.safetensors")
    assert not any(name.endswith(".zero_point") for name in held)
