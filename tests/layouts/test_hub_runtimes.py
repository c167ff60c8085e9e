"""Layouts for optimum, sentence-transformers and transformers.js: files, names, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from lora_export.core.errors import UnsupportedError
from lora_export.core.modes import Mode
from lora_export.layouts.description import ExportKind
from lora_export.layouts.runtimes import RUNTIMES
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.own_tokenizer import save_base_tokenizer
from tests.helpers.sentences import save_sentences

if TYPE_CHECKING:
    from pathlib import Path

JS, OPTIMUM, SENTENCES = "transformers.js", "optimum", "sentence-transformers"
DECODER = ExportKind("llama", "text-generation", Mode.MERGED, cache=True)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def table(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def axes(graph: Path, name: str) -> list[str | int]:
    model = onnx.load(graph, load_external_data=False)
    value = next(each for each in model.graph.input if each.name == name)
    return [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize(
    ("runtime", "change", "named"),
    [
        (OPTIMUM, {"cache": False}, "optimum-onnx needs keys and values"),
        (OPTIMUM, {"cache_length": 64}, "static cache (of 64 positions)"),
        (OPTIMUM, {"model_type": "olmo-9"}, "'olmo-9'"),
        (OPTIMUM, {"task": "image-feature-extraction"}, "no class for image-feature-extraction"),
        (JS, {"cache": False}, "transformers.js needs keys and values"),
        (JS, {"cache_length": 64}, "static cache (of 64 positions)"),
        (JS, {"model_type": "olmo-9"}, "'olmo-9' for text-generation"),
        (JS, {"model_type": "lfm2"}, "'lfm2' for text-generation"),
        (JS, {"model_type": "led", "task": "text2text-generation"}, "'led' for text2text"),
        (JS, {"model_type": "clip", "task": "feature-extraction"}, "of the model type 'clip'"),
        (SENTENCES, {}, "an export for text-generation has none"),
        (SENTENCES, {"task": "text2text-generation"}, "makes embeddings"),
        (SENTENCES, {"task": "feature-extraction", "model_type": "x"}, "'x'"),
    ],
)
def test_what_a_runtime_cannot_run_is_refused_by_name(runtime, change, named):
    for each in (OPTIMUM, JS):
        RUNTIMES[each].require(DECODER)
    with pytest.raises(UnsupportedError) as caught:
        RUNTIMES[runtime].require(replace(DECODER, **change))
    assert named in str(caught.value)
    assert caught.value.hint


def test_a_classifier_has_its_own_head_and_labels(tiny, tmp_path, capsys):
    base = shutil.copytree(tiny.base("bert"), tmp_path / "base")
    save_base_tokenizer(base)
    adapters = {
        "two": {"source": str(tiny.adapter(base, labels_count=2)), "labels": ["no", "yes"]},
        "five": {"source": str(tiny.adapter(base, labels_count=5))},
    }
    build(base, adapters, tmp_path / "out")
    done = call(capsys, "layout", tmp_path / "out", "--for", OPTIMUM, "-o", tmp_path / "o")
    assert done.code == 0, done.err
    two, five = (table(tmp_path / "o" / name / "config.json") for name in adapters)
    assert (two["id2label"], len(five["id2label"])) == ({"0": "no", "1": "yes"}, 5)
    assert two["architectures"] == ["BertForSequenceClassification"]
    assert names(tmp_path / "o" / "two") >= {
        "model.onnx", "model.onnx_data", "config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert table(tmp_path / "o/two/tokenizer_config.json")["tokenizer_class"] == (
        "PreTrainedTokenizerFast"
    )


def test_a_decoder_takes_an_empty_past_as_each_runtime_makes_one(decoders, tmp_path, capsys):
    for runtime in (OPTIMUM, JS):
        done = call(capsys, "layout", decoders["merged"], "--for", runtime, "--adapter", "a",
                    "-o", tmp_path / runtime)  # fmt: skip
        assert done.code == 0, done.err
    past = "past_key_values.0.key"
    assert axes(tmp_path / OPTIMUM / "model.onnx", past) == [
        "batch", "past_heads", "past_sequence", "past_width"
    ]  # fmt: skip
    assert axes(tmp_path / JS / "onnx/model.onnx", past) == ["batch_size", 2, "past_sequence", 8]
    section = table(tmp_path / JS / "config.json")["transformers.js_config"]
    assert section == {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}


VARIANTS = {
    "fp16": {"dtype": "float16"},
    "q4": {"quantize": {"weights": "int4"}},
    "int8": {"quantize": {"weights": "int8"}},
    "q4f16": {"quantize": {"weights": "int4"}, "dtype": "float16"},
}


@pytest.mark.parametrize("dtype", [
    "fp16", "q4", *(pytest.param(each, marks=pytest.mark.slow) for each in ("int8", "q4f16"))
])  # fmt: skip
def test_variants_have_the_names_of_transformers_js(dtype, tiny, tmp_path, capsys):
    settings, ending = VARIANTS[dtype], f"_{dtype}"
    base = tiny.base("llama", DECODER.task)
    adapter = tiny.adapter(base, task=DECODER.task, labels_count=None)
    build(base, {"mine": adapter}, tmp_path / "out", **settings)
    done = call(capsys, "layout", tmp_path / "out", "--for", JS, "--adapter", "mine", "-o",
                tmp_path / "js")  # fmt: skip
    assert done.code == 0, done.err
    assert names(tmp_path / "js") >= {f"onnx/model{ending}.onnx", f"onnx/model{ending}.onnx_data"}
    section = table(tmp_path / "js" / "config.json")["transformers.js_config"]
    assert section["dtype"] == dtype
    assert section.get("kv_cache_dtype") == ({dtype: "float16"} if "16" in dtype else None)
    model = onnx.load(tmp_path / f"js/onnx/model{ending}.onnx", load_external_data=False)
    kinds = {each.name: each.type.tensor_type.elem_type for each in model.graph.output}
    assert kinds["logits"] == onnx.TensorProto.FLOAT
    half = onnx.TensorProto.FLOAT16 if "16" in dtype else onnx.TensorProto.FLOAT
    assert kinds["present.0.key"] == half


def test_bfloat16_is_refused(tiny, tmp_path, capsys):
    base = tiny.base("llama", DECODER.task)
    adapter = tiny.adapter(base, task=DECODER.task, labels_count=None)
    build(base, {"mine": adapter}, tmp_path / "out", dtype="bfloat16", targets=["onnxruntime-cuda"])
    done = call(capsys, "layout", tmp_path / "out", "--for", JS, "-o", tmp_path / "js")
    assert (done.code, "bfloat16" in done.message) == (4, True)
    assert not (tmp_path / "js").exists()


def test_a_pair_is_one_of_optimum(tiny, tmp_path, capsys):
    base = tiny.base("t5", "text2text-generation")
    adapter = tiny.adapter(base, task="text2text-generation", labels_count=None)
    build(base, {"mine": adapter}, tmp_path / "out")
    for runtime, folder in ((OPTIMUM, ""), (JS, "onnx/")):
        output = tmp_path / runtime
        done = call(capsys, "layout", tmp_path / "out", "--for", runtime, "--adapter", "mine",
                    "-o", output)  # fmt: skip
        assert done.code == 0, done.err
        parts = ("encoder_model", "decoder_model_merged")
        assert names(output) >= {
            f"{folder}{part}.onnx{end}" for part in parts for end in ("", "_data")
        }
    config = table(tmp_path / JS / "config.json")
    external = config["transformers.js_config"]["use_external_data_format"]
    assert external == {"encoder_model.onnx": 1, "decoder_model_merged.onnx": 1}


def test_a_sentence_model_keeps_its_modules(tiny, tmp_path, capsys):
    plain = tiny.base("bert", "feature-extraction")
    base = save_sentences(plain, tmp_path / "base", "mean_tokens", dense=12)
    adapter = tiny.adapter(plain, task="feature-extraction", labels_count=None)
    build(base, {"mine": adapter}, tmp_path / "out")
    done = call(capsys, "layout", tmp_path / "out", "--for", SENTENCES, "--adapter", "mine",
                "-o", tmp_path / "s")  # fmt: skip
    assert done.code == 0, done.err
    assert names(tmp_path / "s") >= {
        "modules.json", "1_Pooling/config.json", "2_Dense/config.json", "onnx/model.onnx",
        "2_Dense/model.safetensors", "sentence_bert_config.json", "onnx/model.onnx_data",
    }  # fmt: skip
    model = onnx.load(tmp_path / "s/onnx/model.onnx", load_external_data=False)
    assert [each.name for each in model.graph.output] == ["last_hidden_state", "sentence_embedding"]


def test_a_model_without_modules_is_refused_for_sentences(tiny, tmp_path, capsys):
    base = tiny.base("bert", "feature-extraction")
    adapter = tiny.adapter(base, task="feature-extraction", labels_count=None)
    build(base, {"mine": adapter}, tmp_path / "out", task="feature-extraction")
    done = call(capsys, "layout", tmp_path / "out", "--for", SENTENCES, "-o", tmp_path / "s")
    assert (done.code, "modules.json" in done.message) == (4, True)
