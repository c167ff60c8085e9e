"""GGUF bases that are damaged, incomplete, contradictory, or of a kind that is not read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import CheckpointError, LoraExportError, UnsupportedError
from lora_export.core.tensors import read_all
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.fingerprint import fingerprint
from lora_export.weights.gguf.gguf_parts import read_parts
from lora_export.weights.gguf.gguf_weights import _weight
from tests.cli.running import call
from tests.helpers.gguf_bases import random_blocks, save_gguf, write_gguf

CONFIG = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens": (32, 32),
    "model.norm": (32,),
    "lm_head": (32, 32),
    "model.layers.0.self_attn.q_proj": (32, 32),
    "model.layers.0.self_attn.k_proj": (16, 32),
    "model.layers.0.self_attn.v_proj": (16, 32),
    "model.layers.0.self_attn.o_proj": (32, 32),
    "model.layers.0.mlp.gate_proj": (64, 32),
    "model.layers.0.mlp.up_proj": (64, 32),
    "model.layers.0.mlp.down_proj": (32, 64),
    "model.layers.0.input_layernorm": (32,),
    "model.layers.0.post_attention_layernorm": (32,),
}
Q = "model.layers.0.self_attn.q_proj"


def tensors(**changes):
    """Return the tensors of a model; changes are shapes, None leaves a module out."""
    shapes = {**SHAPES, **{key.replace("__", "."): value for key, value in changes.items()}}
    rng = np.random.default_rng(0)
    kept = {name: shape for name, shape in shapes.items() if shape is not None}
    return {
        f"{name}.weight": rng.standard_normal(shape).astype(np.float32)
        for name, shape in kept.items()
    }


def save(path, changes=None, **metadata):
    path.parent.mkdir(exist_ok=True)
    save_gguf(path, "llama", CONFIG, tensors(**(changes or {})), kind=lambda _: "Q8_0", **metadata)
    return path


def refused(path):
    with pytest.raises(LoraExportError) as caught:
        open_checkpoint(path)
    assert isinstance(caught.value, CheckpointError | UnsupportedError)
    return caught.value


def test_the_plain_model_is_read(tmp_path):
    assert len(open_checkpoint(save(tmp_path / "a.gguf")).tensors) == len(SHAPES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({Q.replace(".", "__"): (64, 32)}, "q_proj.weight' of the base"),
        ({"model__layers__0__self_attn__v_proj": (32, 32)}, "it has 16 rows"),
        ({"model__layers__0__self_attn__o_proj": None}, "no tensor for 'model.layers.0.self"),
        ({"model__layers__0__input_layernorm": (16,)}, "input_layernorm.weight' of the base"),
        ({"model__embed_tokens": None}, "no tensor 'token_embd.weight'"),
        ({"model__norm": None}, "no tensor for 'model.norm.weight'"),
    ],
)  # fmt: skip
def test_missing_tensors_and_wrong_shapes(changes, words, tmp_path):
    error = refused(save(tmp_path / "a.gguf", changes))
    assert words in error.message
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("metadata", "code", "words"),
    [
        ({"llama__block_count": 2}, 3, "no tensor for 'model.layers.1"),
        ({"llama__block_count": 2**31 - 1}, 3, "layers, and has 12 tensors"),
        ({"llama__block_count": None}, 3, "does not say llama.block_count"),
        ({"llama__attention__head_count": 3}, 3, "rows"),
        ({"llama__attention__head_count": "two"}, 3, "llama.attention.head_count: 'two'"),
        ({"llama__attention__head_count_kv": [1, 1]}, 4, "differs from layer to layer"),
        ({"llama__expert_count": 8}, 4, "with experts"),
        ({"llama__rope__scaling__type": "yarn"}, 4, "scaled ('yarn')"),
        ({"llama__rope__dimension_count": 8}, 4, "8 of the 16 rows"),
        ({"split__count": 3}, 3, "part 0 of 3"),
    ],
)  # fmt: skip
def test_metadata_that_contradict_or_say_too_little(metadata, code, words, tmp_path):
    error = refused(save(tmp_path / "a.gguf", **metadata))
    assert words in error.message
    assert error.exit_code == code


def test_a_kind_of_scaling_is_taken_from_the_config_beside(tmp_path):
    path = save(tmp_path / "a.gguf", llama__rope__scaling__type="yarn")
    scaling = {"rope_type": "yarn", "factor": 4.0}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "rope_scaling": scaling}))
    assert open_checkpoint(path).config["rope_scaling"] == scaling


@pytest.mark.parametrize(
    ("key", "value"), [("model_type", "qwen2"), ("num_hidden_layers", 2), ("vocab_size", 64)]
)
def test_the_config_of_another_model_beside(key, value, tmp_path):
    path = save(tmp_path / "a.gguf")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, key: value}))
    error = refused(path)
    assert f"says {key}: " in error.message
    assert error.exit_code == 3


def test_unknown_architectures_are_refused_by_name(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", "deepseek2", {}, {})
    error = refused(path)
    assert "the GGUF architecture 'deepseek2', which is not read" in error.message
    assert error.exit_code == 4


def test_tensors_of_no_module_and_types_that_are_not_read(tmp_path):
    held = {"blk.0.attn_sinks.weight": (np.zeros(4, np.float32), "F32")}
    error = refused(write_gguf(tmp_path / "a.gguf", "llama", {"llama.block_count": 1}, held))
    assert error.exit_code == 3  # there is no embedding
    raw = save(tmp_path / "b.gguf").read_bytes()
    at = raw.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    assert raw[at] == 8
    (tmp_path / "b.gguf").write_bytes(raw[:at] + b"\x24" + raw[at + 1 :])
    error = refused(tmp_path / "b.gguf")
    assert "has the GGML type 36" in error.message
    assert error.exit_code == 4


def test_truncated_files_and_values_that_are_not_finite(tmp_path):
    path = save(tmp_path / "a.gguf")
    raw = path.read_bytes()
    for length in (3, 100, len(raw) // 2, len(raw) - 40):
        path.write_bytes(raw[:length])
        assert refused(path).exit_code == 3
    codes = random_blocks("Q8_0", 32, 32)
    codes[3, :2] = np.array([np.nan], np.float16).view(np.uint8)
    held = tensors()
    save_gguf(path, "llama", CONFIG, held)
    names = {"token_embd.weight": (codes, "Q8_0")}
    write_gguf(tmp_path / "b.gguf", "llama", {}, names)

    weight = _weight(read_parts(tmp_path / "b.gguf"), "token_embd.weight", "x", DTYPES["float32"])
    with pytest.raises(CheckpointError, match="not finite"):
        read_all(weight)


def test_inspect_and_merge_say_what_is_wrong(tmp_path, capsys):
    path = save(tmp_path / "one" / "a.gguf")
    assert call(capsys, "inspect", path).code == call(capsys, "inspect", path.parent).code == 0
    save(path.with_name("b.gguf"))
    for words in (("inspect", path.parent), ("merge", "--base", path.parent)):
        more = () if words[0] == "inspect" else ("--adapter", "x", "--out", tmp_path / "out")
        found = call(capsys, *words, *more)
        assert found.code == 3
        assert "holds several GGUF files" in found.err
    path.write_bytes(path.read_bytes()[:300])
    found = call(capsys, "inspect", path)
    assert found.code == 3
    assert "is not a valid GGUF file" in found.err


def parts_of(folder):
    """Write a base in three parts, as gguf-split names them."""
    save(folder / "whole.gguf")

    whole = read_parts(folder / "whole.gguf")
    names = sorted(whole.tensors)
    for number in range(3):
        metadata = {"split.no": number, "split.count": 3}
        if number == 0:
            metadata |= {k: v for k, v in whole.metadata.items() if k.startswith("llama.")}
        held = {}
        for name in names[number::3]:
            tensor = whole.tensors[name]

            held[name] = (read_all(tensor), "Q8_0" if name in whole.types else "F32")
        write_gguf(folder / f"m-{number + 1:05}-of-00003.gguf", "llama", metadata, held)
    return folder / "whole.gguf"


def test_split_files_are_one_base(tmp_path):
    whole = open_checkpoint(parts_of(tmp_path))
    found = open_checkpoint(tmp_path / "m-00002-of-00003.gguf")
    assert found.file.name == "m-00001-of-00003.gguf"
    assert set(found.tensors) == set(whole.tensors)
    assert fingerprint(found) == fingerprint(whole)
    error = refused(tmp_path)
    assert "holds several GGUF files" in error.message
    (tmp_path / "whole.gguf").unlink()
    assert set(open_checkpoint(tmp_path).tensors) == set(whole.tensors)
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    error = refused(tmp_path)
    assert "m-00003-of-00003.gguf" in error.message
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("head_dim", {"a": 1}), ("head_dim", "16"), ("num_attention_heads", [2]), ("head_dim", 16.0),
     ("intermediate_size", True), ("num_key_value_heads", -1), ("head_dim", 1 << 40)],
)  # fmt: skip
def test_a_size_in_the_config_beside_that_is_none_is_refused(name, value, tmp_path):
    save(tmp_path / "a" / "x.gguf", **{f"llama__{key}": None for key in METADATA.get(name, ())})
    (tmp_path / "a" / "config.json").write_text(json.dumps({**CONFIG, name: value}))
    assert name in refused(tmp_path / "a").message


METADATA = {
    "head_dim": ("attention__key_length",), "num_attention_heads": (),
    "num_key_value_heads": ("attention__head_count_kv",),
    "intermediate_size": ("feed_forward_length",),
}  # fmt: skip
"""The metadata that would contradict a size."""
