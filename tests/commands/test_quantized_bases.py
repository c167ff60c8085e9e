"""Bases that are stored quantized, merged and exported as the floats that they stand for."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.core.merge_record import read_record
from lora_export.core.tensors import read_all
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.fingerprint import dequantized_fingerprint, fingerprint
from tests.cli.running import call
from tests.helpers.quantized_bases import ADAPTER, LLAMA_NF4

QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A checkpoint of the floats that the quantized one stands for."""
    folder = tmp_path_factory.mktemp("floats")
    checkpoint = open_checkpoint(LLAMA_NF4)
    tensors = {name: read_all(tensor) for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(checkpoint.config)))
    return folder


def test_a_merge_is_that_into_the_floats(floats, tmp_path, capsys):
    for base in (LLAMA_NF4, floats):
        arguments = ("--base", base, "--adapter", ADAPTER, "--out", tmp_path / base.name)
        assert call(capsys, "merge", *arguments).code == 0
    merged, expected = (
        load_file(tmp_path / name / "model.safetensors") for name in (LLAMA_NF4.name, floats.name)
    )
    assert {name: each.tobytes() for name, each in merged.items()} == {
        name: each.tobytes() for name, each in expected.items()
    }
    assert "quantization_config" not in (tmp_path / LLAMA_NF4.name / "config.json").read_text()
    record = read_record(tmp_path / LLAMA_NF4.name)
    assert record.base.fingerprint == fingerprint(open_checkpoint(LLAMA_NF4))
    assert record.base.quantization.model_dump() == {
        "method": "bitsandbytes", "schemes": ["nf4"], "bits": [4], "group_sizes": [64],
        "weights": 14,
    }  # fmt: skip
    assert record.fingerprint == read_record(tmp_path / floats.name).fingerprint


def test_fingerprints_are_of_what_is_stored_and_of_the_values(floats, capsys):
    quantized, plain = open_checkpoint(LLAMA_NF4), open_checkpoint(floats)
    assert fingerprint(quantized) != fingerprint(plain)
    assert dequantized_fingerprint(quantized) == dequantized_fingerprint(plain)
    found = call(capsys, "inspect", LLAMA_NF4, "--hash", "--json").document
    assert found["fingerprint"] == fingerprint(quantized)
    assert found["dequantized_fingerprint"] == dequantized_fingerprint(plain)
    assert found["quantization"]["method"] == "bitsandbytes"
    assert found["parameters"] == sum(
        tensor.size for tensor in map(read_all, plain.tensors.values())
    )
    assert (
        "14 weights: bitsandbytes nf4, 4 bits, groups of 64"
        in call(capsys, "inspect", LLAMA_NF4).out
    )


def test_the_way_back_is_the_quantized_checkpoint(tmp_path, capsys):
    arguments = ("--base", LLAMA_NF4, "--out", tmp_path / "base")
    call(capsys, "merge", "--base", LLAMA_NF4, "--adapter", ADAPTER, "--out", tmp_path / "merged")
    assert call(capsys, "merge", "--unmerge", tmp_path / "merged", *arguments).code == 0
    assert fingerprint(open_checkpoint(tmp_path / "base")) == fingerprint(
        open_checkpoint(LLAMA_NF4)
    )
    given, again = (load_file(f / "model.safetensors") for f in (LLAMA_NF4, tmp_path / "base"))
    assert {k: v.tobytes() for k, v in given.items()} == {k: v.tobytes() for k, v in again.items()}


def test_an_adapter_is_bound_to_what_is_stored(floats, tmp_path, capsys):
    adapter = tmp_path / "bound"
    arguments = ("adapter", "convert", ADAPTER, "--base", LLAMA_NF4, "--to", "peft", "--out")
    assert call(capsys, *arguments, adapter).code == 0
    merge = ("merge", "--adapter", adapter, "--out", tmp_path / "merged", "--base")
    assert call(capsys, *merge, LLAMA_NF4).code == 0
    found = call(capsys, "merge", "--adapter", adapter, "--out", tmp_path / "x", "--base", floats)
    assert found.code == 3
    assert "is not the base that adapter" in found.err
    other = tmp_path / "other"
    shutil.copytree(LLAMA_NF4, other)
    tensors = load_file(other / "model.safetensors")
    tensors[f"{QUERY}.absmax"] = tensors[f"{QUERY}.absmax"] ^ np.uint8(1)
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    found = call(capsys, "merge", "--adapter", adapter, "--out", tmp_path / "y", "--base", other)
    assert found.code == 3
    assert f"{QUERY}.absmax" in found.err


def test_an_adapter_that_names_the_quantized_base_is_noted_on_the_floats(floats, tmp_path, capsys):
    adapter = shutil.copytree(ADAPTER, tmp_path / "a")
    table = json.loads((adapter / "adapter_config.json").read_text())
    table["base_model_name_or_path"] = str(LLAMA_NF4)
    (adapter / "adapter_config.json").write_text(json.dumps(table))
    arguments = ("merge", "--adapter", adapter, "--out", tmp_path / "out", "--base")
    found = call(capsys, *arguments, floats, "--json")
    assert found.code == 0
    (note,) = found.document["notes"]
    assert "that one is quantized (bitsandbytes), the given one not quantized" in note
    strict = call(capsys, *arguments[:3], "--out", tmp_path / "z", "--base", floats, "--strict")
    assert strict.code == 3
    found = call(capsys, "merge", "--adapter", adapter, "--out", tmp_path / "same",
                 "--base", LLAMA_NF4, "--json")  # fmt: skip
    assert found.document["notes"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "says quant_method: 'gptq', but"),
        ({"bnb_4bit_quant_type": "fp4"}, "says bnb_4bit_quant_type: 'fp4', but"),
        ({"load_in_8bit": True}, "says load_in_8bit: True, but"),
        ({"bits": "four"}, "must be a number of bits"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(change, message, tmp_path, capsys):
    base = shutil.copytree(LLAMA_NF4, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] |= change
    (base / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    found = call(capsys, "merge", "--base", base, "--adapter", ADAPTER, "--out", out)
    assert found.code == 3
    assert message in found.err
    assert not out.exists()


def test_a_config_that_says_nothing_is_enough(tmp_path):
    base = shutil.copytree(LLAMA_NF4, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["quantization_config"]
    (base / "config.json").write_text(json.dumps(config))
    assert fingerprint(open_checkpoint(base)) == fingerprint(open_checkpoint(LLAMA_NF4))


@pytest.mark.nightly
def test_an_export_computes_what_peft_computes_on_the_floats(tmp_path, capsys):
    out = tmp_path / "out"
    found = call(capsys, "merge-and-build", "--base", LLAMA_NF4, "--adapter", f"a={ADAPTER}",
                 "--out", out, "--dtype", "float32", "--no-latency", "--json")  # fmt: skip
    assert found.code == 0, found.err
    report = json.loads((out / "reports" / "parity.json").read_text())
    assert report["graphs"]["a"]["verdict"] == "pass"
    manifest = json.loads((out / "lora_export.json").read_text())
    assert manifest["base"]["stored_quantization"]["schemes"] == ["nf4"]
    assert manifest["base"]["fingerprint"] == fingerprint(open_checkpoint(LLAMA_NF4))


@pytest.mark.slow
def test_a_merge_computes_what_peft_computes_on_what_bitsandbytes_dequantized(tmp_path, capsys):
    import torch
    from transformers import LlamaForCausalLM

    out = tmp_path / "out"
    found = call(capsys, "merge", "--base", LLAMA_NF4, "--adapter", ADAPTER, "--out", out,
                 "--verify", "--dtype", "float32")  # fmt: skip
    assert "pass" in found.out
    expected = load_file(LLAMA_NF4.parent / "llama-nf4-outputs.safetensors")
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(expected["input_ids"])).logits.numpy()
    error = np.linalg.norm(logits - expected["logits"]) / np.linalg.norm(expected["logits"])
    assert error < 1e-5


@pytest.fixture
def original(floats, tmp_path):
    """A checkpoint that the quantized one may have been made of: near its values, norms equal."""
    folder = shutil.copytree(floats, tmp_path / "original")
    rng = np.random.default_rng(0)
    tensors = load_file(folder / "model.safetensors")
    weights = open_checkpoint(LLAMA_NF4).quantized.weights
    for name in weights:
        noise = rng.uniform(-0.02, 0.02, tensors[name].shape)
        tensors[name] = (tensors[name] + noise).astype(np.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def changed_in(folder, change):
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_original_takes_the_place_of_the_quantized_base(original, tmp_path, capsys):
    bound = tmp_path / "bound"
    convert = ("adapter", "convert", ADAPTER, "--base", LLAMA_NF4, "--to", "peft", "--out", bound)
    assert call(capsys, *convert).code == 0
    merge = ("merge", "--adapter", bound, "--strict", "--base", LLAMA_NF4)
    found = call(capsys, *merge, "--base-override", original, "--out", tmp_path / "out", "--json")
    assert found.code == 0, found.err
    assert found.document["notes"] == []
    call(capsys, "merge", "--adapter", ADAPTER, "--base", original, "--out", tmp_path / "plain")
    merged, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "plain"))
    assert merged[QUERY].tobytes() == plain[QUERY].tobytes()
    record = read_record(tmp_path / "out")
    assert record.base.fingerprint == fingerprint(open_checkpoint(original))
    assert record.base.trained_on.fingerprint == fingerprint(open_checkpoint(LLAMA_NF4))
    assert record.base.trained_on.stored.schemes == ["nf4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, QUERY: t[QUERY][::-1].copy()}, f"'{QUERY}' of .* differs by 1.* another"),
        (lambda t: {**t, QUERY: t[QUERY][:8]}, r"as \[8, 64\], the base .* as \[64, 64\]"),
        (lambda t: {k: v for k, v in t.items() if k != QUERY}, "as none, the base"),
        (lambda t: {**t, "model.norm.weight": t["model.norm.weight"] * np.float16(1.5)},
         "'model.norm.weight' of .* which does not quantize it.* moved scales"),
    ],
)  # fmt: skip
def test_an_original_of_another_model_is_refused(change, message, original, tmp_path, capsys):
    changed_in(original, change)
    out = tmp_path / "out"
    found = call(capsys, "merge", "--base", LLAMA_NF4, "--base-override", original,
                 "--adapter", ADAPTER, "--out", out)  # fmt: skip
    assert found.code == 3
    assert re.search(message, found.err, re.DOTALL)
    assert not out.exists()


def test_an_original_of_a_base_that_is_not_quantized_is_refused(floats, tmp_path, capsys):
    for base, original in ((floats, LLAMA_NF4), (floats, floats), (LLAMA_NF4, LLAMA_NF4)):
        found = call(capsys, "merge", "--base", base, "--base-override", original,
                     "--adapter", ADAPTER, "--out", tmp_path / "out")  # fmt: skip
        assert found.code == 2
        assert "cannot stand in for the base" in found.err


@pytest.mark.slow
def test_an_export_of_the_original_records_both(original, tmp_path, capsys):
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {LLAMA_NF4}\nbase_override: {original}\noutput: {out}\n"
                      f"adapters: [{{name: a, source: {ADAPTER}}}]\n"
                      "verify: {enabled: false}\nlatency: {enabled: false}\n")  # fmt: skip
    assert call(capsys, "merge-and-build", recipe).code == 0
    base = json.loads((out / "lora_export.json").read_text())["base"]
    assert base["fingerprint"] == fingerprint(open_checkpoint(original))
    assert base["trained_on"]["fingerprint"] == fingerprint(open_checkpoint(LLAMA_NF4))
    assert "stored_quantization" not in base
    bound = tmp_path / "bound"
    call(capsys, "adapter", "convert", ADAPTER, "--base", LLAMA_NF4, "--to", "peft", "--out", bound)
    assert call(capsys, "add", out, "--adapter", f"b={bound}").code == 0
