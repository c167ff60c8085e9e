"""GPTQ, AWQ, FP8 blocks and MXFP4, packed by hand: values, parts, and what does not fit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lora_export.core.errors import CheckpointError, UnsupportedError
from lora_export.core.tensors import bytes_of, read_all
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.quantized.weight import Form
from tests.helpers.hand_packed import pack_awq, pack_fp8_blocks, pack_gptq, pack_mxfp4
from tests.helpers.quantized_bases import expected_values, stored_parts, write_base

NAME = "model.layers.0.mlp.up_proj.weight"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}


def named(parts, module="model.layers.0.mlp.up_proj"):
    return {
        f"{module}{'' if key.startswith('_') else '.'}{key}": each for key, each in parts.items()
    }


def opened(folder, parts, settings=None, dtype="float16"):
    return open_checkpoint(write_base(folder, parts, settings, dtype))


def require_values(tensor, values):
    assert tensor.shape == values.shape
    assert read_all(tensor).tobytes() == values.tobytes()
    flat = np.ascontiguousarray(values).reshape(-1, values.shape[-1])
    rows, width = flat.shape
    for start, stop in (
        (3, width - 2),
        (width + 1, 3 * width - 1),
        (rows * width // 2, rows * width),
    ):
        part = np.empty(stop - start, values.dtype)
        tensor.read_into(bytes_of(part), start * values.dtype.itemsize)
        assert part.tobytes() == flat.reshape(-1)[start:stop].tobytes()
    for first, last in ((0, 5), (9, 10), (width // 2, width)):
        assert tensor.read_columns(first, last).tobytes() == flat[:, first:last].tobytes()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq(bits, act_order, version, tmp_path):
    parts, values = pack_gptq(64, 96, bits=bits, act_order=act_order, version=version)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": act_order,
                "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}  # fmt: skip
    checkpoint = opened(tmp_path, named(parts), settings)
    require_values(checkpoint.tensors[NAME], values)
    assert checkpoint.quantized.weights[NAME].form == Form("gptq", f"int{bits}", bits, 32)


def test_gptq_with_a_last_group_that_is_not_full_and_without_an_order(tmp_path):
    parts, values = pack_gptq(40, 72, group_size=32)
    del parts["g_idx"]
    require_values(opened(tmp_path, named(parts), GPTQ).tensors[NAME], values)


def test_one_group_is_written_as_minus_one(tmp_path):
    parts, values = pack_gptq(64, 96, group_size=96)
    checkpoint = opened(tmp_path, named(parts), {**GPTQ, "group_size": -1})
    require_values(checkpoint.tensors[NAME], values)


def test_awq(tmp_path):
    parts, values = pack_awq(48, 96, group_size=16)
    settings = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
    require_values(opened(tmp_path, named(parts), settings).tensors[NAME], values)


def test_fp8_in_blocks(tmp_path):
    parts, values = pack_fp8_blocks(140, 200)
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    require_values(opened(tmp_path, named(parts), settings, "bfloat16").tensors[NAME], values)


@pytest.mark.parametrize("shape", [(140, 200), (300, 300), (64, 300)])
def test_fp8_in_blocks_of_compressed_tensors(shape, tmp_path):
    parts, values = pack_fp8_blocks(*shape)
    parts["weight_scale"] = parts.pop("weight_scale_inv")
    weights = {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]}
    settings = {
        "quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}},
    }  # fmt: skip
    require_values(opened(tmp_path, named(parts), settings, "bfloat16").tensors[NAME], values)
    if shape[0] > 128:
        found = opened(tmp_path / "bare", named(parts), None, "bfloat16").tensors[NAME]
        assert read_all(found).tobytes() == values.tobytes()


def test_mxfp4(tmp_path):
    parts, values = pack_mxfp4(3, 40, 96)
    parts = named(parts, EXPERTS)
    checkpoint = opened(tmp_path, parts, {"quant_method": "mxfp4"}, "bfloat16")
    require_values(checkpoint.tensors[EXPERTS], values)


@pytest.mark.slow
def test_mxfp4_is_what_transformers_converts(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    parts, _ = pack_mxfp4(2, 24, 64, seed=1)
    found = read_all(opened(tmp_path, named(parts, EXPERTS), None, "bfloat16").tensors[EXPERTS])
    blocks, scales = (torch.from_numpy(parts[key]) for key in ("_blocks", "_scales"))
    expected = convert_moe_packed_tensors(blocks, scales).contiguous()
    assert found.tobytes() == expected.view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("qweight", lambda v: v[:-1], "must be|needs int32"),
        ("qweight", lambda v: v[:, :-1], "must be|has the shape"),
        ("qweight", lambda v: v.astype(np.int16), "needs int32"),
        ("qweight", lambda v: v[0], "a matrix is expected"),
        ("qzeros", lambda v: v[:, :-1], "must be|codes of 3 bits"),
        ("qzeros", lambda v: v[:-1], "must be"),
        ("qzeros", None, "has no tensor .*qzeros"),
        ("scales", None, "has no tensor .*scales"),
        ("scales", lambda v: v[:, :-8], "must be"),
        ("scales", lambda v: v * np.float16(np.nan), "holds nan"),
        ("g_idx", None, "has no tensor .*g_idx"),
        ("g_idx", lambda v: v[:-1], "needs int32"),
        ("g_idx", lambda v: v + 1, "names group 3 of 3"),
        ("g_idx", lambda v: v - 1, "names group -1 of 3"),
    ],
)
def test_gptq_that_does_not_fit_is_refused(key, change, message, tmp_path):
    parts, _ = pack_gptq(64, 96, act_order=True)
    parts = {k: v for k, v in parts.items() if k != key or change is not None}
    if change is not None:
        parts[key] = change(parts[key])
    with pytest.raises(CheckpointError, match=message) as error:
        read_all(opened(tmp_path, named(parts), {**GPTQ, "desc_act": True}).tensors[NAME])
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("qweight", lambda v: v[:, :-1]),
        ("qzeros", lambda v: v[:, :-1]),
        ("scales", lambda v: np.concatenate([v, v[:2]])),
        ("scales", lambda v: v[:, :-1]),
    ],
)
def test_awq_that_does_not_fit_is_refused(key, change, tmp_path):
    parts, _ = pack_awq(48, 96, group_size=16)
    parts[key] = change(parts[key])
    with pytest.raises(CheckpointError):
        opened(tmp_path, named(parts), {"quant_method": "awq"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**GPTQ, "bits": 8}, "says bits: 8, but .* is stored as 4 bits"),
        ({**GPTQ, "group_size": 128}, "says group_size: 128, but .* groups of 32"),
        ({**GPTQ, "quant_method": "awq"}, "says quant_method: 'awq', but .* gptq int4"),
        ({**GPTQ, "quant_method": "bitsandbytes"}, "says quant_method: 'bitsandbytes'"),
    ],
)
def test_settings_that_contradict_the_tensors_are_refused(settings, message, tmp_path):
    parts, _ = pack_gptq(64, 96)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, named(parts), settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**GPTQ, "checkpoint_format": "marlin"}, "in the layout 'marlin'"),
        ({**GPTQ, "quant_method": "hqq"}, r"is quantized \(hqq\), which is not read"),
    ],
)
def test_layouts_that_are_not_read_are_refused_by_name(settings, message, tmp_path):
    parts, _ = pack_gptq(64, 96)
    with pytest.raises(UnsupportedError, match=message):
        opened(tmp_path, named(parts), settings)


@pytest.mark.parametrize(
    ("method", "dtype", "message"),
    [
        ("bitsandbytes", np.int8, "its scales are missing: SCB"),
        ("bitsandbytes", np.uint8, "its scales are missing: quant_state"),
        ("fp8", ml_dtypes.float8_e4m3fn, "its scales are missing: weight_scale or"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_weights_without_scales_are_damaged(method, dtype, message, alone, tmp_path):
    parts = {"a.weight": np.ones((4, 4), dtype)}
    if not alone:
        others = stored_parts("int8.weight") if method == "bitsandbytes" else {}
        parts |= others or named(pack_fp8_blocks(140, 200)[0])
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, parts, {"quant_method": method})


def test_a_quantized_base_without_its_files_is_incomplete(tmp_path):
    base = write_base(tmp_path, named(pack_gptq(64, 96)[0]), GPTQ)
    (base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        open_checkpoint(base)


def test_awq_for_single_rows_is_refused_by_name(tmp_path):
    parts, _ = pack_awq(48, 96)
    with pytest.raises(UnsupportedError, match="in the layout 'gemv'"):
        opened(tmp_path, named(parts), {"quant_method": "awq", "version": "gemv"})


def test_several_methods_in_one_checkpoint_are_refused(tmp_path):
    name = "int8.weight"
    parts = {**named(pack_gptq(64, 96)[0]), **stored_parts(name)}
    with pytest.raises(UnsupportedError, match=r"bitsandbytes \(int8.weight\), gptq \("):
        opened(tmp_path, parts)
    assert name in expected_values()


def test_codes_that_no_format_claims_are_refused(tmp_path):
    parts = {**named(pack_gptq(64, 96)[0]), "lm_head.packed": np.zeros((4, 4), np.uint8)}
    with pytest.raises(UnsupportedError, match=r"1 tensor.* of codes") as error:
        opened(tmp_path, parts, GPTQ)
    assert "lm_head.packed: uint8 [4, 4]" in str(error.value)


def test_a_weight_in_floats_beside_its_codes_is_refused(tmp_path):
    parts = {**named(pack_gptq(64, 96)[0]), NAME: np.zeros((64, 96), np.float16)}
    with pytest.raises(CheckpointError, match="twice, once quantized"):
        opened(tmp_path, parts)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weight_scale_inv", lambda v: v[:-1], "needs floats"),
        ("weight_scale_inv", lambda v: v * np.float32(np.nan), "holds nan"),
        ("weight", lambda v: v[0], "quantized weights are matrices"),
        ("weight", lambda v: v.view(np.uint8), "needs float8_e4m3fn"),
        ("weight", None, "has no tensor .*weight'"),
    ],
)
def test_fp8_that_does_not_fit_is_refused(key, change, message, tmp_path):
    parts, _ = pack_fp8_blocks(140, 200)
    parts = {k: v for k, v in parts.items() if k != key or change is not None}
    if change is None:
        parts["other"] = np.zeros((2, 2), ml_dtypes.float8_e4m3fn)
    else:
        parts[key] = change(parts[key])
    with pytest.raises(CheckpointError, match=message):
        read_all(opened(tmp_path, named(parts)).tensors[NAME])


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("_scales", lambda v: v[:-1], "needs uint8"),
        ("_scales", None, "has no tensor .*_scales"),
        ("_scales", lambda v: np.full_like(v, 255), "255, which is NaN"),
        ("_blocks", lambda v: v[..., :-1], "MXFP4 is"),
    ],
)
def test_mxfp4_that_does_not_fit_is_refused(key, change, message, tmp_path):
    parts, _ = pack_mxfp4(2, 24, 64)
    parts = {k: v for k, v in parts.items() if k != key or change is not None}
    if change is not None:
        parts[key] = change(parts[key])
    with pytest.raises(CheckpointError, match=message):
        read_all(opened(tmp_path, named(parts, EXPERTS)).tensors[EXPERTS])
