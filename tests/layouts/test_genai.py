"""onnxruntime-genai's settings, and the exports that it cannot run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from lora_export.core.errors import UnsupportedError
from lora_export.core.manifest import CompanionsRecord, read_manifest
from lora_export.core.modes import Mode
from lora_export.graph.spec.signature import CachedLayer, Input, Output, Signature
from lora_export.layouts.description import ExportKind, Subject
from lora_export.layouts.genai import describe_genai, require_genai
from lora_export.layouts.genai_config import genai_config
from lora_export.layouts.runtimes import RUNTIMES

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def signature(*widths: int) -> Signature:
    text = [Input(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]
    layers = [CachedLayer(at, 2, width, width) for at, width in enumerate(widths)]
    kept = [each for at, layer in enumerate(layers) for each in layer.inputs(at, "float32")]
    return Signature((*text, *kept), (Output("logits", ("batch", "sequence", 320)),))


def config_of(config=LLAMA, generation=None, widths=(8, 8)):
    return genai_config(
        config, generation or {}, signature(*widths), filename="model.onnx", quiet=False
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": "text-classification"}, "text-classification"),
        ({"task": "text2text-generation"}, "an encoder and a decoder"),
        ({"cache": False}, "the graph has no cache"),
        ({"cache_length": 64}, "static cache (of 64 positions)"),
        ({"model_type": "olmo-9"}, "'olmo-9'"),
    ],
)
def test_what_it_cannot_run_is_refused_by_name(change, named):
    kind = ExportKind("llama", "text-generation", Mode.MERGED, cache=True)
    require_genai(kind)
    with pytest.raises(UnsupportedError) as caught:
        require_genai(replace(kind, **change))
    assert named in str(caught.value)
    assert caught.value.hint


def test_the_model_is_described_as_its_graph_is():
    model = config_of()["model"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("llama", 320, 96)
    decoder = model["decoder"]
    assert decoder["inputs"] == {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }  # no positions: the graph has none
    names = ("num_hidden_layers", "num_key_value_heads", "head_size", "num_attention_heads")
    assert tuple(decoder[name] for name in names) == (2, 2, 8, 4)
    assert config_of()["search"]["past_present_share_buffer"] is False


def test_graphs_of_onnx_runtimes_form_share_their_buffers():
    found = genai_config(
        LLAMA, {}, signature(8), filename="model.onnx", quiet=False, shared_buffer=True
    )
    assert found["search"]["past_present_share_buffer"] is True


@pytest.mark.parametrize("runtime", ["optimum", "transformers.js"])
def test_others_take_portable_graphs_only(runtime):
    kind = ExportKind("llama", "text-generation", Mode.MERGED, cache=True, form="ort")
    require_genai(kind)
    with pytest.raises(UnsupportedError, match="the export has 'ort'") as caught:
        RUNTIMES[runtime].require(kind)
    assert caught.value.exit_code == 4
    RUNTIMES[runtime].require(replace(kind, form="portable"))


def test_layers_of_several_shapes_are_refused():
    with pytest.raises(UnsupportedError, match="2 heads of 16, 2 heads of 8"):
        config_of(widths=(8, 16))


@pytest.mark.parametrize(
    ("config", "generation", "tokens"),
    [
        ({}, {}, (1, 2, 2)),
        ({"pad_token_id": 0}, {"eos_token_id": [2, 5]}, (1, [2, 5], 0)),
        ({"eos_token_id": [7, 8], "bos_token_id": None}, {}, (7, [7, 8], 7)),
        ({"pad_token_id": -1, "eos_token_id": True}, {"bos_token_id": 4}, (4, 0, 0)),
    ],
)
def test_token_ids_are_those_of_generation_then_of_the_config(config, generation, tokens):
    model = config_of({**LLAMA, **config}, generation)["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == tokens


def test_sampling_is_that_of_the_generation_config():
    search = config_of(generation={
        "do_sample": True, "temperature": 1, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05,
        "min_length": float("nan"), "num_beams": "2", "max_length": 20, "early_stopping": "never",
    })["search"]  # fmt: skip
    assert search["do_sample"] is True
    assert isinstance(search["temperature"], float)
    assert (search["top_k"], search["top_p"], search["repetition_penalty"]) == (20, 0.8, 1.05)
    assert (search["min_length"], search["num_beams"], search["max_length"]) == (0, 1, 96)


@pytest.mark.parametrize(
    ("model_type", "switch", "length"),
    [("phi3", 4096, 131072), ("phi3", 2048, 2048), ("llama", 4096, 4096)],
)
def test_texts_end_where_a_cache_would_have_to_be_computed_again(model_type, switch, length):
    config = {
        **LLAMA,
        "model_type": model_type,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": switch,
        "rope_scaling": {"type": "longrope", "original_max_position_embeddings": switch},
    }
    assert config_of(config)["model"]["context_length"] == length


def notes_of(export, adapter="a", **changes):
    manifest = read_manifest(export)
    base = manifest.base.model_copy(update=changes)
    changed = manifest.model_copy(update={"base": base})
    return describe_genai(Subject(export, changed, adapter)).notes


def test_what_spoils_a_batch_is_pointed_out(decoders, tmp_path):
    export = decoders["merged"]
    assert notes_of(export) == ()
    assert "same number of tokens" in notes_of(export, logits="last")[0]
    assert "bfloat16" in notes_of(export, dtype="bfloat16")[0]
    windowed = shutil.copytree(export, tmp_path / "windowed")
    path = windowed / "hf/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sliding_window": 5}))
    assert "same number of tokens" in notes_of(windowed)[0]


def test_a_tokenizer_without_settings_gets_those_that_the_runtime_needs(decoders, tmp_path):
    subject = Subject(decoders["merged"], read_manifest(decoders["merged"]), "a")
    assert not (decoders["merged"] / "hf/tokenizer_config.json").exists()
    content = describe_genai(subject).files["tokenizer_config.json"]
    assert isinstance(content, bytes)
    found = json.loads(content)
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    export = shutil.copytree(decoders["merged"], tmp_path / "out")
    (export / "hf/tokenizer.json").unlink()
    described = describe_genai(Subject(export, subject.manifest, "a"))
    assert "tokenizer_config.json" not in described.files
    assert "no tokenizer.json" in described.notes[0]


def test_packs_with_a_tokenizer_of_their_own_are_named(decoders):
    manifest = read_manifest(decoders["swappable"])
    own = manifest.adapters["b"].model_copy(update={"companions": CompanionsRecord()})
    changed = manifest.model_copy(update={"adapters": {**manifest.adapters, "b": own}})
    (note,) = describe_genai(Subject(decoders["swappable"], changed, "swappable")).notes
    assert "--adapter b" in note


def test_a_config_without_positions_is_refused():
    with pytest.raises(UnsupportedError, match="how long a text may become"):
        config_of({"model_type": "llama"})
