"""Repositories as they are written: configurations word for word, files, what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from lora_export.deploy.triton import write_repository
from lora_export.deploy.triton_check import check_repository
from lora_export.deploy.triton_settings import Settings
from tests.cli.running import call, command, snapshot, stagings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("deploy")

ONNXRUNTIME = """\
name: "m-a"
version_policy {
  latest {
    num_versions: 2
  }
}
max_batch_size: 8
input {
  name: "input_ids"
  data_type: TYPE_INT64
  dims: -1
}
input {
  name: "attention_mask"
  data_type: TYPE_INT64
  dims: -1
}
input {
  name: "token_type_ids"
  data_type: TYPE_INT64
  dims: -1
}
output {
  name: "logits"
  data_type: TYPE_FP32
  dims: 3
}
instance_group {
  count: 2
  gpus: 0
  gpus: 1
  kind: KIND_GPU
  rate_limiter {
    resources {
      name: "R1"
      count: 4
    }
    priority: 3
  }
}
dynamic_batching {
  preferred_batch_size: 4
  preferred_batch_size: 8
  max_queue_delay_microseconds: 250
  default_queue_policy {
    default_timeout_microseconds: 1000000
    max_queue_size: 32
  }
}
parameters {
  key: "adapter"
  value {
    string_value: "a"
  }
}
parameters {
  key: "base_fingerprint"
  value {
    string_value: "FINGERPRINT"
  }
}
parameters {
  key: "intra_op_thread_count"
  value {
    string_value: "3"
  }
}
backend: "onnxruntime"
response_cache {
  enable: true
}
"""


def read_config(folder: Path) -> ModelConfig:
    """Parse with protobuf itself."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def plain(text: str) -> str:
    return re.sub(r"[0-9a-f]{64}", "FINGERPRINT", text)


# ----------------------------------------------------------------------------- configurations


def test_a_merged_adapter_for_onnxruntime_word_for_word(exports, tmp_path):
    settings = Settings(
        max_batch_size=8, max_queue_delay_us=250, preferred_batch_sizes=(4, 8), max_queue_size=32,
        queue_timeout_us=1_000_000, instances=2, device="gpu", gpus=(0, 1), threads=3,
        response_cache=True, warmup=False, versions=2, resources={"R1": 4}, priority=3,
    )  # fmt: skip
    done = write_repository(exports["merged"], tmp_path / "models", name="m", settings=settings)
    assert done.models == ("m-a", "m-b", "m-c")
    assert plain((tmp_path / "models/m-a/config.pbtxt").read_text()) == ONNXRUNTIME
    assert check_repository(tmp_path / "models") == {"m-a": [], "m-b": [], "m-c": []}


def test_the_same_export_gives_the_same_bytes(exports, tmp_path):
    for folder in ("one", "two"):
        for mode, export in exports.items():
            write_repository(export, tmp_path / folder, name=mode, text=True)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    assert stagings(tmp_path) == []


def test_warm_up_requests_are_golden_inputs(exports, tmp_path):
    write_repository(exports["merged"], tmp_path / "models", name="m")
    (request,) = read_config(tmp_path / "models/m-a").model_warmup
    assert request.batch_size == 1
    assert set(request.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    for name, given in request.inputs.items():
        path = tmp_path / "models/m-a/warmup" / given.input_data_file
        assert path.stat().st_size == 8 * given.dims[0], name


def test_a_batched_graph_for_onnxruntime_takes_rows(exports, tmp_path):
    write_repository(exports["batched"], tmp_path / "models", name="m", backend="onnxruntime")
    config = read_config(tmp_path / "models/m")
    (ids,) = [each for each in config.input if each.name == "adapter_ids"]
    assert list(ids.dims) == [1]
    assert ids.HasField("reshape")
    assert list(ids.reshape.shape) == []
    assert check_repository(tmp_path / "models") == {"m": []}


@pytest.mark.parametrize("cached", [False, True])
def test_the_adapter_is_an_input_and_a_must_with_a_response_cache(exports, tmp_path, cached):
    settings = Settings(response_cache=cached)
    write_repository(exports["swappable"], tmp_path / "models", name="m", settings=settings)
    config = read_config(tmp_path / "models/m")
    (adapter,) = [each for each in config.input if each.name == "adapter"]
    assert ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[
        adapter.data_type
    ].name == "TYPE_STRING"  # fmt: skip
    assert adapter.optional is not cached


def engine(export: Path, graph: str, capability: object, version: str = "10.3") -> None:
    folder = export / "engines"
    folder.mkdir(exist_ok=True)
    stem = f"{graph}.sm{str(capability).replace('.', '')}.trt{version}"
    (folder / f"{stem}.plan").write_bytes(b"plan of " + stem.encode())
    (folder / f"{stem}.json").write_text(json.dumps({"compute_capability": capability}))


def test_engines_by_compute_capability(exports, tmp_path):
    export = shutil.copytree(exports["merged"], tmp_path / "out")
    engine(export, "a", "8.7")
    engine(export, "a", "9.0")
    repository = tmp_path / "models"
    write_repository(export, repository, name="m", backend="tensorrt", adapters=["a"])
    config = read_config(repository / "m-a")
    assert config.backend == "tensorrt"
    assert dict(config.cc_model_filenames) == {
        "8.7": "a.sm87.trt10.3.plan",
        "9.0": "a.sm90.trt10.3.plan",
    }
    assert (repository / "m-a/1/a.sm87.trt10.3.plan").read_bytes() == b"plan of a.sm87.trt10.3"
    assert check_repository(repository) == {"m-a": []}
    engine(export, "a", "8.7", "10.7")
    result = command("triton", export, "--repository", tmp_path / "two", "--backend", "tensorrt",
                     "--adapter", "a")  # fmt: skip
    assert (result.code, "both for compute capability 8.7" in result.message) == (2, True)


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime"])
def test_optional_inputs_are_refused_by_backends_that_take_none(exports, tmp_path, capsys, backend):
    result = call(capsys, "triton", exports["swappable"], "--repository", tmp_path / "models",
                  "--backend", backend)  # fmt: skip
    assert result.code == 4
    assert "optional inputs of a swappable graph" in result.message
    assert "--backend python" in result.message
    assert not (tmp_path / "models").exists()


# -------------------------------------------------------------------------------------- files


def test_weights_are_linked_and_what_it_takes_is_said_before(exports, tmp_path, capsys):
    result = call(capsys, "triton", exports["merged"], "--repository", tmp_path / "models",
                  "--name", "m", "--json")  # fmt: skip
    assert result.code == 0
    linked = tmp_path / "models/m-a/1/weights/base.safetensors"
    assert linked.samefile(exports["merged"] / "weights/base.safetensors")
    assert result.err.index("bytes of memory") < result.err.index("writing m-a")
    document = result.document
    assert document["linked_bytes"] > document["own_bytes"] > 0
    assert document["memory_bytes"] > 3 * linked.stat().st_size * 0.5


def test_without_hard_links_files_are_copied(exports, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_repository(exports["merged"], tmp_path / "models", name="m")
    copied = tmp_path / "models/m-a/1/weights/base.safetensors"
    original = exports["merged"] / "weights/base.safetensors"
    assert copied.read_bytes() == original.read_bytes()
    assert not copied.samefile(original)


def test_past_a_handful_of_merged_adapters_the_python_backend_is_pointed_to(
    exports, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("lora_export.deploy.triton.HANDFUL", 2)
    result = call(capsys, "triton", exports["merged"], "--repository", tmp_path / "models",
                  "--backend", "onnxruntime")  # fmt: skip
    assert result.code == 0
    assert "3 merged adapters are as many models" in result.err
    assert "--backend python" in result.err


def test_by_default_more_than_a_handful_go_to_the_python_backend(exports, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_export.deploy.triton_models.HANDFUL", 2)
    done = write_repository(exports["merged"], tmp_path / "models", name="m")
    assert (done.backend, done.models) == ("python", ("m",))


def test_what_is_copied_into_a_repository_imports_nothing_of_this_package(exports, tmp_path):
    write_repository(exports["swappable"], tmp_path / "models", name="m", text=True)
    sources = sorted((tmp_path / "models").rglob("*.py"))
    assert len(sources) == 9
    for path in sources:
        imported = re.findall(r"^\s*(?:from|import) (\S+)", path.read_text(), re.MULTILINE)
        outside = {each.partition(".")[0] for each in imported if not each.startswith(".")}
        assert not outside & {"lora_export", "torch", "onnx", "transformers"}, path


# ------------------------------------------------------------------------------------ refusals


def refused(capsys, *words: object) -> tuple[int, str]:
    result = call(capsys, "triton", *words)
    return result.code, result.message


def test_a_model_that_is_there_is_not_overwritten(exports, tmp_path, capsys):
    words = (exports["swappable"], "--repository", tmp_path / "models", "--name", "m")
    assert call(capsys, "triton", *words).code == 0
    before = snapshot(tmp_path / "models")
    code, message = refused(capsys, *words)
    assert (code, "is there already" in message) == (3, True)
    assert snapshot(tmp_path / "models") == before


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--adapter", "nobody"], 3, "holds no adapter 'nobody'"),
        (["--name", "../m"], 2, "cannot be called '../m'"),
        (["--way", "batched"], 4, "nothing can be served batched"),
        (["--way", "merged"], 4, "cannot be served merged"),
        (["--backend", "tensorrt", "--way", "swappable"], 2, "is of the Python backend"),
        (["--cache-bytes", "10"], 2, "cache_bytes is 10"),
        (["--max-batch-size", "0"], 2, "max_batch_size"),
        (["--versions", "new"], 2, "--versions"),
        (["--versions", "1,3"], 2, "version 1 is written"),
        (["--resource", "R"], 2, "NAME=COUNT"),
    ],
)
def test_what_cannot_be_is_said(exports, tmp_path, capsys, words, code, text):  # noqa: PLR0917
    result = call(capsys, "triton", exports["swappable"], "--repository", tmp_path / "models",
                  *words)  # fmt: skip
    assert result.code == code
    assert text in result.err
    assert not (tmp_path / "models").exists()


def test_a_damaged_export_is_not_deployed(exports, tmp_path, capsys):
    export = shutil.copytree(exports["swappable"], tmp_path / "out")
    pack = export / "adapters/b.safetensors"
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.unlink()
    pack.write_bytes(data)
    code, message = refused(capsys, export, "--repository", tmp_path / "models")
    assert (code, "adapters/b.safetensors" in message) == (3, True)


def test_a_failed_adapter_is_not_deployed(exports, tmp_path, capsys):
    export = shutil.copytree(exports["swappable"], tmp_path / "out")
    manifest = json.loads((export / "lora_export.json").read_text())
    manifest["adapters"]["b"]["pack"]["verification"] = "fail"
    (export / "lora_export.json").write_text(json.dumps(manifest))
    code, message = refused(capsys, export, "--repository", tmp_path / "models")
    assert (code, "'b' failed its verification" in message) == (3, True)


def test_without_tritonclient_it_is_said_what_to_install(exports, tmp_path):
    result = command("triton", exports["merged"], "--repository", tmp_path / "models",
                     without=["tritonclient"])  # fmt: skip
    assert result.code == 7
    assert "lora-export[triton]" in result.message


def test_a_recipe_has_a_section_and_flags_win(exports, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: b\noutput: o\ntriton:\n  repository: models\n  name: m\n  max_batch_size: 4\n"
        "  response_cache: true\n"
    )
    result = call(capsys, "triton", exports["swappable"], "--recipe", recipe,
                  "--max-batch-size", "2")  # fmt: skip
    assert result.code == 0, result.err
    config = read_config(tmp_path / "models/m")
    assert (config.max_batch_size, config.response_cache.enable) == (2, True)
    recipe.write_text("base: b\noutput: o\ntriton:\n  max_batch: 4\n")
    result = call(capsys, "triton", exports["swappable"], "--recipe", recipe)
    assert (result.code, "max_batch_size" in result.message) == (2, True)
