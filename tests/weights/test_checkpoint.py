"""Checkpoints in every layout, and every way a layout can be broken."""

from __future__ import annotations

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lora_export.core.errors import CheckpointError, UnsupportedError
from lora_export.core.tensors import nbytes, read_all
from lora_export.weights.checkpoint import open_checkpoint, read_config
from lora_export.weights.fingerprint import fingerprint

TENSORS: dict[str, np.ndarray] = {
    "encoder.layer.0.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "encoder.layer.0.bias": np.array([1.0, 2.0, 3.0], np.float16),
    "encoder.layer.1.weight": np.ones((4, 3), ml_dtypes.bfloat16),
    "embeddings.position_ids": np.arange(5, dtype=np.int64),
}
CONFIG = {"model_type": "bert", "hidden_size": 4}


def as_torch(tensors):
    return {
        name: torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
        if value.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(value)
        for name, value in tensors.items()
    }


def write(folder, layout, tensors=TENSORS, **torch_settings):
    """Write `tensors` in one of the layouts; return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    kind, _, sharded = layout.partition(" ")
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")

    def save(part, name):
        if suffix == "bin":
            torch.save(as_torch(part), folder / name, **torch_settings)
        else:
            save_file(part, folder / name, {"format": "pt"})

    if not sharded:
        save(tensors, f"{stem}.{suffix}")
        return folder
    names = sorted(tensors)
    parts = [names[::2], names[1::2]]
    weight_map: dict[str, str] = {}
    for index, part in enumerate(parts, 1):
        file = f"{stem}-{index:05}-of-00002.{suffix}"
        save({name: tensors[name] for name in part}, file)
        weight_map |= dict.fromkeys(part, file)
    index_table = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index_table))
    return folder


LAYOUTS = ("safetensors", "safetensors sharded", "bin", "bin sharded")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same_tensors(layout, tmp_path):
    checkpoint = open_checkpoint(write(tmp_path, layout), source="org/name")
    assert checkpoint.source == "org/name"
    assert checkpoint.config["hidden_size"] == 4
    assert set(checkpoint.tensors) == set(TENSORS)
    for name, expected in TENSORS.items():
        tensor = checkpoint.tensors[name]
        assert (tensor.name, tensor.shape, tensor.dtype.numpy) == (
            name,
            expected.shape,
            expected.dtype,
        )
        assert nbytes(tensor) == expected.nbytes
        assert read_all(tensor).tobytes() == expected.tobytes()


def test_safetensors_are_read_before_pickles(tmp_path):
    write(tmp_path, "bin", {"old": np.ones(2, np.float32)})
    write(tmp_path, "safetensors")
    assert set(open_checkpoint(tmp_path).tensors) == set(TENSORS)


def test_transformers_own_shards_are_read(tiny):
    folder = tiny.base("bert", max_shard_size="30KB")
    whole = tiny.base("bert")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    expected = load_file(whole / "model.safetensors")
    found = open_checkpoint(folder).tensors
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(read_all(found[name]), values)


def test_companions_are_listed(tmp_path):
    write(tmp_path, "safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("not needed")
    companions = {path.name for path in open_checkpoint(tmp_path).companions}
    assert companions == {"config.json", "tokenizer.json"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layer_norms_old_names_are_made_new(layout, tmp_path):
    tensors = {
        "bert.LayerNorm.gamma": np.ones(2, np.float32),
        "bert.LayerNorm.beta": np.zeros(2, np.float32),
        "bert.other.gamma": np.full(2, 3.0, np.float32),
    }
    found = open_checkpoint(write(tmp_path, layout, tensors)).tensors
    assert set(found) == {"bert.LayerNorm.weight", "bert.LayerNorm.bias", "bert.other.gamma"}
    assert {tensor.name for tensor in found.values()} == set(found)
    np.testing.assert_array_equal(read_all(found["bert.LayerNorm.weight"]), [1, 1])
    np.testing.assert_array_equal(read_all(found["bert.LayerNorm.bias"]), [0, 0])


def test_an_old_name_beside_its_new_one_is_not_silently_lost(tmp_path):
    tensors = {
        "LayerNorm.gamma": np.ones(2, np.float32),
        "LayerNorm.weight": np.zeros(2, np.float32),
    }
    with pytest.raises(CheckpointError, match=r"LayerNorm\.(gamma|weight)"):
        open_checkpoint(write(tmp_path, "safetensors", tensors))


# ------------------------------------------------------------------------------------- broken


def edit_index(folder, change):
    (path,) = folder.glob("*.index.json")
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


@pytest.mark.parametrize("layout", ["safetensors sharded", "bin sharded"])
def test_a_missing_shard_is_named(layout, tmp_path):
    write(tmp_path, layout)
    (shard,) = tmp_path.glob("*-00002-of-00002*")
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002.*is missing") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "", ".", "..", 7, None]
)
def test_an_index_that_names_a_path_is_refused(shard, tmp_path):
    folder = write(tmp_path / "base", "safetensors sharded")
    save_file({"encoder.layer.0.weight": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    edit_index(folder, lambda t: t["weight_map"].update({"encoder.layer.0.weight": shard}))
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path):
    write(tmp_path, "safetensors sharded")
    edit_index(
        tmp_path,
        lambda t: t["weight_map"].update({"ghost": "model-00001-of-00002.safetensors"}),
    )
    with pytest.raises(CheckpointError, match="'ghost' is not in the shard"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("value", [None, [], {}, "x"])
def test_an_index_without_a_map_is_refused(value, tmp_path):
    write(tmp_path, "safetensors sharded")
    edit_index(tmp_path, lambda t: t.update({"weight_map": value}))
    with pytest.raises(CheckpointError, match="has the weight_map"):
        open_checkpoint(tmp_path)


def test_an_index_whose_values_are_tables_is_refused(tmp_path):
    write(tmp_path, "safetensors sharded")
    edit_index(tmp_path, lambda t: t["weight_map"].update({"x": {"a": 1}}))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_damaged_is_named(name, text, tmp_path):
    write(tmp_path, "safetensors sharded")
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert name in caught.value.message


def test_a_checkpoint_without_tensors_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no tensors"):
        open_checkpoint(write(tmp_path, "safetensors", {}))


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"model\.safetensors or pytorch_model\.bin"):
        open_checkpoint(tmp_path)


def test_a_pointer_file_of_git_lfs_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 90868376\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match="is a pointer of Git LFS"):
        open_checkpoint(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a directory"):
        open_checkpoint(tmp_path / "gone")


def test_a_folder_that_is_an_adapter_says_so(tiny, tmp_path):
    shutil.copytree(tiny.adapter(tiny.base("bert")), tmp_path / "a")
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "a")
    shutil.copy(tmp_path / "a" / "adapter_config.json", tmp_path / "a" / "config.json")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "a")
    assert "adapter" in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_file_is_the_checkpoints_fault(layout, tmp_path):
    write(tmp_path, layout)
    file = max(path for path in tmp_path.iterdir() if path.suffix != ".json")
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 9)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert file.name in caught.value.message


def test_a_dtype_that_is_not_known_is_not_supported(tmp_path):
    save_file({"x": np.ones(2, np.uint16)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UnsupportedError, match="U16"):
        open_checkpoint(tmp_path)


def test_a_config_without_a_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    with pytest.raises(CheckpointError, match="model_type"):
        read_config(tmp_path)


# -------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_does_not_depend_on_layout_order_or_metadata(tmp_path):
    found = {layout: fingerprint(open_checkpoint(write(tmp_path / layout, layout)))
             for layout in LAYOUTS}  # fmt: skip
    legacy = write(tmp_path / "legacy", "bin", _use_new_zipfile_serialization=False)
    found["legacy"] = fingerprint(open_checkpoint(legacy))
    turned = dict(reversed(TENSORS.items()))
    found["turned"] = fingerprint(open_checkpoint(write(tmp_path / "turned", "bin", turned)))
    assert len(set(found.values())) == 1, found
    assert len(next(iter(found.values()))) == 64


def changed(name, value):
    return {**TENSORS, name: value}


OTHERS = {
    "a value": changed("encoder.layer.0.bias", np.array([1.0, 2.0, 3.5], np.float16)),
    "a sign of zero": changed("encoder.layer.0.weight", -TENSORS["encoder.layer.0.weight"] * 0 + 0),
    "a dtype of the same bytes": changed("embeddings.position_ids", np.arange(5).view(np.float64)),
    "a shape of the same bytes": changed(
        "encoder.layer.0.weight", TENSORS["encoder.layer.0.weight"].reshape(4, 3)
    ),
    "a name": {**{k: v for k, v in TENSORS.items() if "bias" not in k}, "b": np.ones(3)},
    "one more": {**TENSORS, "more": np.ones(1, np.float32)},
    "one less": {k: v for k, v in TENSORS.items() if "bias" not in k},
    "two swapped": {
        **TENSORS,
        "x": np.ones(2, np.float32),
        "y": np.zeros(2, np.float32),
    },
    "swapped back": {
        **TENSORS,
        "x": np.zeros(2, np.float32),
        "y": np.ones(2, np.float32),
    },
}


def test_every_difference_is_another_fingerprint(tmp_path):
    found = {"as it was": fingerprint(open_checkpoint(write(tmp_path / "0", "safetensors")))}
    for index, (what, tensors) in enumerate(OTHERS.items(), 1):
        folder = write(tmp_path / str(index), "safetensors", tensors)
        found[what] = fingerprint(open_checkpoint(folder))
    assert len(set(found.values())) == len(found), found


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("bert", "fill-mask"),
        ("roberta", "fill-mask"),
        ("distilbert", "fill-mask"),
        ("deberta-v2", "fill-mask"),
        ("gpt2", "text-generation"),
        ("llama-tied", "text-generation"),
        ("llama", "text-generation"),
        ("bert", "text-classification"),
    ],
)
def test_a_pickle_of_the_same_model_has_the_same_fingerprint_tied_weights_included(
    kind, task, tiny, tmp_path
):
    import transformers

    from lora_export.graph.spec.tasks import by_name

    folder = tiny.base(kind, task)
    model = getattr(transformers, by_name(task).auto_class).from_pretrained(folder)
    shutil.copy(folder / "config.json", tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert fingerprint(open_checkpoint(tmp_path)) == fingerprint(open_checkpoint(folder))


def test_an_untied_head_with_values_of_its_own_counts(tmp_path):
    embedding = np.arange(6, dtype=np.float32).reshape(3, 2)
    tied = {"model.embed_tokens.weight": embedding}
    pickled = {**tied, "lm_head.weight": embedding}
    untied = {**tied, "lm_head.weight": embedding + 1}
    digests = [
        fingerprint(open_checkpoint(write(tmp_path / str(index), "safetensors", tensors)))
        for index, tensors in enumerate((tied, pickled, untied))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_equal_tensors_that_are_not_tied_all_count(tmp_path):
    one = {"layer.0.bias": np.zeros(3, np.float32)}
    two = {**one, "layer.1.bias": np.zeros(3, np.float32)}
    digests = {
        fingerprint(open_checkpoint(write(tmp_path / str(index), "safetensors", tensors)))
        for index, tensors in enumerate((one, two))
    }
    assert len(digests) == 2


def test_progress_adds_up_to_all_bytes(tmp_path):
    told: list[int] = []
    fingerprint(open_checkpoint(write(tmp_path, "safetensors")), told.append)
    assert sum(told) == sum(value.nbytes for value in TENSORS.values())


@pytest.mark.parametrize("method", ["hqq", "aqlm", "quark"])
def test_a_quantized_base_is_refused_by_its_method(tmp_path, method):
    settings = {"quant_method": method, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": settings}))
    with pytest.raises(UnsupportedError, match=rf"is quantized \({method}\)") as error:
        open_checkpoint(tmp_path)
    assert "unquantized checkpoint" in error.value.hint


def _with_settings(folder, tensors, method="bitsandbytes"):
    settings = {"quant_method": method, "load_in_4bit": True}
    nested = {"text_config": {"quantization_config": settings, "hidden_size": 4}}
    config = {**CONFIG, **nested, "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_floats_under_a_leftover_quantization_config_are_a_base(tmp_path):
    tensors = {
        "layer.weight": np.ones((4, 4), np.float32),
        "embeddings.position_ids": np.arange(4, dtype=np.int64),
        "h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8),
    }
    checkpoint = open_checkpoint(_with_settings(tmp_path, tensors))
    assert set(checkpoint.tensors) == set(tensors)
    assert checkpoint.config == {**CONFIG, "text_config": {"hidden_size": 4}}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_codes_are_refused_by_the_method(dtype, tmp_path):
    tensors = {"norm.weight": np.ones(4, np.float32), "layer.weight": np.ones((4, 4), dtype)}
    with pytest.raises(UnsupportedError, match=r"is quantized \(hqq\)"):
        open_checkpoint(_with_settings(tmp_path, tensors, "hqq"))
