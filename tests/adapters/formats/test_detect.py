"""The format of a folder or file, refusals before a reader is chosen, and fuzzing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from lora_export.adapters.formats.detect import FORMATS, is_adapter, read_adapter
from lora_export.core.errors import AdapterError, LoraExportError, UnsupportedError, UsageError
from tests.adapters.formats.test_llama_cpp import pairs
from tests.adapters.formats.test_llama_cpp import write as write_gguf
from tests.helpers.formats import factors, write_tensors
from tests.helpers.peft_files import WRAPPER, pair, write_peft

A, B = factors(4, 6)
MLX = {"lora_parameters": {"rank": 2, "scale": 2.0}}
BASE = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
V = "layers.0.attn.v_proj"
TE = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def peft(folder):
    return write_peft(folder, pair("m", 4, 6))


def loralib(folder):
    write_tensors(folder / "lora.safetensors", {"m.lora_A": A, "m.lora_B": B})
    return folder


def kohya(folder):
    tensors = {f"{TE}.lora_down.weight": A, f"{TE}.lora_up.weight": B}
    write_tensors(folder / "any.safetensors", tensors)
    return folder


def mlx(folder):
    tensors = {"m.lora_a": A.T, "m.lora_b": B.T}
    write_tensors(folder / "adapters.safetensors", tensors, MLX)
    return folder


def torchtune(folder):
    folder.mkdir()
    tensors = {f"{V}.lora_a.weight": A, f"{V}.lora_b.weight": B}
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, folder / "adapter_0.pt")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    return folder


def gguf(folder):
    folder.mkdir()
    write_gguf(folder / "lora.gguf", pairs(**{"blk.0.attn_v": 6}))
    return folder


WRITERS = {each.__name__: each for each in (peft, loralib, kohya, mlx, torchtune, gguf)}


def options(kind):
    return {"alpha": 4} if kind == "loralib" else {}


def weights(folder):
    return next(each for each in folder.iterdir() if each.suffix != ".json")


def read(path, **given_options):
    return read_adapter(path, name="x", source="here", **given_options)


def test_every_format_has_a_writer_here():
    assert set(WRITERS) == set(FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_and_its_file_are_of_one_format(tmp_path, kind):
    folder = WRITERS[kind](tmp_path / "adapter")
    for path in (folder, weights(folder)):
        assert is_adapter(path)
        found = read(path, **options(kind))
        assert found.format == kind
        assert len(found.low_rank) == 1
        assert found.low_rank[0].rank == 2
        assert len(found.sha256) == 64
        assert read(path, format=kind, **options(kind)).sha256 == found.sha256


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("forced", FORMATS)
def test_a_forced_format_that_is_not_there_is_an_error(tmp_path, kind, forced):
    if kind == forced:
        pytest.skip("the format that is there")
    folder = WRITERS[kind](tmp_path / "adapter")
    with pytest.raises(LoraExportError):
        read(folder, format=forced, **(options(forced)))


def test_torchtune_under_the_names_of_peft(tmp_path):
    tensors = {f"{V}.lora_a.weight": A, f"{V}.lora_b.weight": B}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    write_tensors(tmp_path / "adapter_model.safetensors", tensors, config)
    assert read(tmp_path).format == "torchtune"


def test_options_of_no_use_are_refused(tmp_path):
    for kind in ("peft", "mlx", "kohya", "gguf"):
        folder = WRITERS[kind](tmp_path / kind)
        with pytest.raises(UsageError, match="--alpha is given"):
            read(folder, alpha=1)
        with pytest.raises(UsageError, match="--enable-lora is given"):
            read(folder, enable_lora=[True])
    with pytest.raises(UsageError, match="unknown adapter format 'lora'"):
        read(folder, format="lora")


def test_what_is_not_recognised_says_why(tmp_path):
    names = write_tensors(tmp_path / "a.safetensors", pair("m", 4, 6))
    with pytest.raises(AdapterError, match="no known adapter format") as error:
        read(names)
    assert "copy adapter_config.json" in str(error.value)
    with pytest.raises(AdapterError, match="not a directory or file"):
        read(tmp_path / "none")
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(AdapterError, match="an unknown kind"):
        read(tmp_path / "x.txt")
    write_tensors(tmp_path / "b.safetensors", {"w": A})
    with pytest.raises(AdapterError, match=r"several files of tensors: a\.safetensors"):
        read(tmp_path)
    write_tensors(tmp_path / "c.safetensors", {})
    with pytest.raises(AdapterError, match="has no tensors"):
        read(tmp_path / "c.safetensors")


def test_a_checkpoint_is_no_adapter(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {"w": A})
    assert not is_adapter(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_adapter(tmp_path)


FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("kind", FORMATS)
@FUZZ
@given(data=st.data())
def test_damaged_files_give_clean_errors(kind, data, tmp_path_factory):
    folder = WRITERS[kind](tmp_path_factory.mktemp("fuzz") / "adapter")
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2, 9]))]))
    try:
        found = read(folder, base_config=BASE, **options(kind))
    except LoraExportError:
        return
    assert len(found.tensors) + len(found.repeated) > 0


@pytest.mark.parametrize("name", ["x.safetensors", "x.gguf", "x.pt", "adapter_config.json"])
@FUZZ
@given(raw=st.binary(max_size=200))
def test_any_bytes_give_clean_errors(name, raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / name).write_bytes(raw)
    with pytest.raises(LoraExportError):
        read(folder)
    is_adapter(folder)


LEAVES = (
    "lora_A", "lora_B", "lora_a", "lora_b", "m", "alpha", "lora_a.weight", "lora_b.weight",
    "magnitude", "lora_down.weight", "lora_up.weight", "weight", "bias", "weight.lora_a",
)  # fmt: skip
MODULES = ("", "m", TE, V, "layers.0.attn.q_proj", "output", "model.embed_tokens", "text_encoder.x")
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TENSORS = st.dictionaries(
    st.builds("{}.{}".format, st.sampled_from(MODULES), st.sampled_from(LEAVES)),
    st.tuples(st.sampled_from([np.float32, np.float16, np.int64, np.bool_]), SHAPES),
    max_size=6,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
CONFIGS = st.dictionaries(
    st.sampled_from(["lora_alpha", "r", "fine_tune_type", "model", "lora_parameters"]),
    VALUES | st.dictionaries(st.sampled_from(["scale", "rank", "alpha"]), VALUES),
)
BASES = st.none() | st.dictionaries(
    st.sampled_from(["model_type", "num_attention_heads", "num_key_value_heads", "text_config"]),
    VALUES | st.sampled_from(["llama", "qwen2", 1, 2]),
)


@settings(max_examples=400, deadline=None)
@given(
    tensors=TENSORS,
    config=st.none() | CONFIGS,
    base=BASES,
    alpha=st.none() | st.floats(),
    marks=st.none() | st.lists(st.booleans(), max_size=5),
    kind=st.none() | st.sampled_from(FORMATS[1:]),
)
def test_any_tensors_and_settings_give_an_adapter_or_a_clean_error(
    tmp_path_factory, *, tensors, config, base, alpha, marks, kind
):
    folder = tmp_path_factory.mktemp("fuzz")
    stored = {name: np.ones(shape, dtype) for name, (dtype, shape) in tensors.items()}
    (folder / "x.safetensors").write_bytes(save(stored))
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    try:
        found = read(
            folder / "x.safetensors", format=kind, alpha=alpha, enable_lora=marks, base_config=base
        )
    except LoraExportError:
        return
    for update in found.low_rank:
        assert len(update.a.shape) == len(update.b.shape) == 2
        assert update.a.shape[0] == update.b.shape[1] > 0
        assert np.isfinite(update.scale)
    assert found.tensor_count <= len(stored)
    alphas = sum(name.endswith(".alpha") for name in stored)
    assert found.tensor_count + alphas * (found.format == "kohya") >= len(stored)


def test_an_adapter_of_another_kind_is_refused_by_it_whatever_its_tensors_are_called(tmp_path):
    tensors = {
        f"{WRAPPER}q.lora_A": np.ones((2, 3), np.float32),
        f"{WRAPPER}q.lora_B": np.ones((4, 2), np.float32),
        f"{WRAPPER}q.lora_E": np.ones((2, 1), np.float32),
    }
    folder = write_peft(tmp_path, tensors, peft_type="POLY")
    for alpha in (None, 16):
        with pytest.raises(UnsupportedError, match="peft_type 'POLY'"):
            read_adapter(folder, name="x", source="x", alpha=alpha)
