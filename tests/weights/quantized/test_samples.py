"""Quantized weights as their libraries stored them: the values are those of the libraries."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from lora_export.core.errors import CheckpointError
from lora_export.core.tensors import bytes_of, nbytes, read_all, sha256_of_tensor
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.quantized.weight import Form
from tests.helpers.quantized_bases import expected_values, stored_parts, write_base

EXPECTED = expected_values()
NESTED = "nf4-nested-130.weight"
PACKED = "int4-asymmetric.weight"


def opened(name, folder):
    base = write_base(folder, stored_parts(name), dtype=EXPECTED[name].dtype.name)
    return open_checkpoint(base)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_values_are_those_of_the_library_bit_for_bit(name, tmp_path):
    checkpoint = opened(name, tmp_path)
    assert list(checkpoint.tensors) == [name]
    found = read_all(checkpoint.tensors[name])
    assert found.dtype == EXPECTED[name].dtype
    assert found.tobytes() == EXPECTED[name].tobytes()
    assert set(checkpoint.stored) == set(stored_parts(name))


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_any_part_is_that_part_of_the_whole(name, tmp_path):
    tensor = opened(name, tmp_path).tensors[name]
    whole = EXPECTED[name]
    width, total = whole.shape[1], nbytes(tensor)
    raw = whole.tobytes()
    for start, stop in ((1, 2), (width - 1, 3 * width + 5), (total // 3, total - 1), (7, total)):
        buffer = np.empty(stop - start, np.uint8)
        tensor.read_into(bytes_of(buffer), start)
        assert buffer.tobytes() == raw[start:stop]
    for first, last in ((0, 1), (width // 3, width // 2 + 1), (width - 1, width)):
        assert np.array_equal(tensor.read_columns(first, last), whole[:, first:last])


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (NESTED, Form("bitsandbytes", "nf4", 4, 64)),
        ("fp4-130.weight", Form("bitsandbytes", "fp4", 4, 128)),
        ("int8.weight", Form("bitsandbytes", "int8", 8)),
        (PACKED, Form("compressed-tensors", "int4", 4, 16)),
        ("gptq.weight", Form("gptq", "int4", 4, 32)),
        ("awq.weight", Form("awq", "int4", 4, 32)),
        ("int3-channel.weight", Form("compressed-tensors", "int3", 3)),
        ("fp8-tensor.weight", Form("compressed-tensors", "fp8", 8)),
    ],
)
def test_the_form_is_told_by_what_is_stored(name, form, tmp_path):
    quantized = opened(name, tmp_path).quantized
    assert quantized.weights[name].form == form


@pytest.mark.parametrize("name", ["nf4-nested-130.weight", "int8.weight", "gptq.weight"])
def test_a_conv1d_has_its_inputs_first_again(name, tmp_path):
    module = "transformer.h.0.attn.c_attn."
    parts = {module + k.partition(".")[2]: v for k, v in stored_parts(name).items()}
    base = write_base(tmp_path, parts, dtype=EXPECTED[name].dtype.name)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    tensor = open_checkpoint(base).tensors[f"{module}weight"]
    expected = np.ascontiguousarray(EXPECTED[name].T)
    assert tensor.shape == expected.shape
    assert read_all(tensor).tobytes() == expected.tobytes()
    assert np.array_equal(tensor.read_columns(3, 6), expected[:, 3:6])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_codes_may_be_stored_as_floats(dtype, tmp_path):
    name = "nf4-33.weight"
    parts = stored_parts(name)
    parts[name] = parts[name].reshape(-1).view(dtype).reshape(-1, 1)
    found = read_all(open_checkpoint(write_base(tmp_path, parts, dtype="float32")).tensors[name])
    assert found.tobytes() == EXPECTED[name].tobytes()


def test_values_that_are_not_finite_are_refused(tmp_path):
    name = "fp8-channel.weight"
    parts = stored_parts(name)
    parts[name] = parts[name].copy()
    parts[name].view(np.uint8)[3, 5] = 0x7F  # NaN in E4M3
    tensor = open_checkpoint(write_base(tmp_path, parts, dtype="bfloat16")).tensors[name]
    with pytest.raises(CheckpointError, match="not finite"):
        read_all(tensor)


def test_memory_does_not_depend_on_the_size(tmp_path):
    rows, width = 2048, 4096
    rng = np.random.default_rng(0)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [rows, width]}
    parts = {
        "x.weight": rng.integers(0, 256, (rows * width // 2, 1), np.uint8),
        "x.weight.absmax": rng.random(rows * width // 64, np.float32),
        "x.weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        "x.weight.quant_state.bitsandbytes__nf4": np.frombuffer(
            json.dumps(state).encode(), np.uint8
        ),
    }
    tensor = open_checkpoint(write_base(tmp_path, parts)).tensors["x.weight"]
    del parts
    tracemalloc.start()
    sha256_of_tensor(tensor)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < nbytes(tensor) // 1.2 < 16e6


def test_scales_of_activations_are_left_out(tmp_path):
    name = "int8-dense.weight"
    further = {
        "int8-dense.input_scale": np.ones(1, np.float32),
        "int8-dense.input_zero_point": np.zeros(1, np.int8),
        "attn.k_scale": np.ones(1, np.float32),
    }
    base = write_base(tmp_path, {**stored_parts(name), **further}, dtype="bfloat16")
    checkpoint = open_checkpoint(base)
    assert list(checkpoint.tensors) == [name]
    assert further.keys() < checkpoint.stored.keys()


def changed_state(parts, **changes):
    key = next(name for name in parts if ".quant_state." in name)
    state = {**json.loads(parts[key].tobytes()), **changes}
    return {**parts, key: np.frombuffer(json.dumps(state).encode(), np.uint8)}


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (".absmax", None, "has no tensor .*absmax"),
        (".nested_absmax", None, "has no tensor .*nested_absmax"),
        (".quant_map", None, "has no tensor .*quant_map"),
        (".absmax", lambda values: values[:-1], r"uint8 \[262\]; .* needs uint8 \[263\]"),
        (".nested_absmax", lambda values: values * np.nan, "holds nan"),
        ("130.weight", lambda values: values[:-1], "a quantized weight needs uint8"),
        ("130.weight", lambda values: values.view(np.int8), "a quantized weight needs uint8"),
        ("__nf4", lambda values: values[:-9], "no state of a weight"),
        ("__nf4", lambda values: np.frombuffer(b"[1]", np.uint8), "no state of a weight"),
    ],
)  # fmt: skip
def test_damaged_parts_of_bitsandbytes_are_refused(suffix, change, message, tmp_path):
    parts = stored_parts(NESTED)
    key = next(name for name in parts if name.endswith(suffix))
    parts = {name: each for name, each in parts.items() if name != key or change is not None}
    if change is not None:
        parts[key] = change(parts[key])
    with pytest.raises(CheckpointError, match=message) as error:
        read_all(open_checkpoint(write_base(tmp_path, parts)).tensors[NESTED])
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"blocksize": 0},
        {"blocksize": "64"},
        {"dtype": "int8"},
        {"shape": []},
        {"shape": [0, 64]},
        {"shape": [2**40, 2**39]},
        {"quant_type": "fp4"},
        {"nested_offset": float("nan")},
        {"nested_blocksize": None},
    ],
)
def test_states_that_mean_nothing_are_refused(changes, tmp_path):
    parts = changed_state(stored_parts(NESTED), **changes)
    with pytest.raises(CheckpointError, match=r"quant_state|needs uint8"):
        open_checkpoint(write_base(tmp_path, parts))


def test_codes_without_their_state_are_refused(tmp_path):
    parts = {k: v for k, v in stored_parts(NESTED).items() if ".quant_state." not in k}
    with pytest.raises(CheckpointError, match=r"has no .*quant_state\.bitsandbytes__nf4"):
        open_checkpoint(write_base(tmp_path, parts))


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("_scale", None, "has no tensor .*weight_scale"),
        ("_shape", None, "has no tensor .*weight_shape"),
        ("_shape", lambda values: values + 1, "weight_shape says"),
        ("_packed", lambda values: values[:, :-1], "words a row"),
        ("_scale", lambda values: values[:-1], r"the weight has 44 outputs"),
        ("_scale", lambda values: values * np.inf, "scales are finite"),
        ("_zero_point", lambda values: values[:-1], "needs int32"),
    ],
)
def test_damaged_parts_of_compressed_tensors_are_refused(suffix, change, message, tmp_path):
    parts = stored_parts(PACKED)
    key = next(name for name in parts if name.endswith(suffix))
    parts = {name: each for name, each in parts.items() if name != key or change is not None}
    if change is not None:
        parts[key] = change(parts[key])
    with pytest.raises(CheckpointError, match=message):
        read_all(open_checkpoint(write_base(tmp_path, parts)).tensors[PACKED])


@pytest.mark.parametrize("suffix", [".weight", "SCB", "_format"])
def test_damaged_parts_of_int8_are_refused(suffix, tmp_path):
    parts = stored_parts("int8.weight")
    key = next(name for name in parts if name.endswith(suffix))
    broken = np.ones_like(parts[key])[..., None] if suffix != "_format" else parts[key] + 1
    with pytest.raises(CheckpointError, match=r"int8"):
        open_checkpoint(write_base(tmp_path, {**parts, key: broken}))
