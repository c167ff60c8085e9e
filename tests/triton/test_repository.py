"""Repositories as they are written: configurations word for word, files, what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import onnx
import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from lora_export.core.errors import UsageError
from lora_export.triton.check_repository import check_repository
from lora_export.triton.repository import write_repository
from lora_export.triton.repository_options import RepositoryOptions
from tests.cli.running import call, command, snapshot, stagings
from tests.helpers.triton_config import read_config

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
"""


def plain(text: str) -> str:
    return re.sub(r"[0-9a-f]{64}", "FINGERPRINT", text)


# ----------------------------------------------------------------------------- configurations


def test_a_merged_adapter_for_onnxruntime_word_for_word(served, tmp_path):
    settings = RepositoryOptions(
        max_batch_size=8, max_queue_delay_us=250, preferred_batch_sizes=(4, 8), max_queue_size=32,
        queue_timeout_us=1_000_000, instances=2, device="gpu", gpus=(0, 1), threads=3,
        response_cache=True, warmup=False, versions=2, resources={"R1": 4}, priority=3,
    )  # fmt: skip
    done = write_repository(served["merged"], tmp_path / "models", name="m", settings=settings)
    assert done.models == ("m-a", "m-b", "m-c", "m-a-cached", "m-b-cached", "m-c-cached")
    assert plain((tmp_path / "models/m-a/config.pbtxt").read_text()) == ONNXRUNTIME
    assert check_repository(tmp_path / "models") == {name: [] for name in done.models}


def test_the_same_export_gives_the_same_bytes(served, tmp_path):
    for folder in ("one", "two"):
        for mode, export in served.items():
            write_repository(export, tmp_path / folder, name=mode, text=True)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    assert stagings(tmp_path) == []


def test_warm_up_requests_are_golden_inputs(served, tmp_path):
    write_repository(served["merged"], tmp_path / "models", name="m")
    (request,) = read_config(tmp_path / "models/m-a").model_warmup
    assert request.batch_size == 1
    assert set(request.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    for name, given in request.inputs.items():
        path = tmp_path / "models/m-a/warmup" / given.input_data_file
        assert path.stat().st_size == 8 * given.dims[0], name


def test_a_batched_graph_for_onnxruntime_takes_rows(served, tmp_path):
    write_repository(served["batched"], tmp_path / "models", name="m", backend="onnxruntime")
    config = read_config(tmp_path / "models/m")
    (ids,) = [each for each in config.input if each.name == "adapter_ids"]
    assert list(ids.dims) == [1]
    assert ids.HasField("reshape")
    assert list(ids.reshape.shape) == []
    assert check_repository(tmp_path / "models") == {"m": []}


def test_the_adapter_is_an_input_and_a_must_with_a_response_cache(served, tmp_path):
    settings = RepositoryOptions(response_cache=True)
    write_repository(served["swappable"], tmp_path / "models", name="m", settings=settings)
    for name in ("m", "m-cached"):
        config = read_config(tmp_path / "models" / name)
        (adapter,) = [each for each in config.input if each.name == "adapter"]
        assert ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[
            adapter.data_type
        ].name == "TYPE_STRING"  # fmt: skip
        assert adapter.optional is (name == "m")


@pytest.mark.parametrize("mode", ["merged", "swappable", "batched"])
def test_a_response_cache_is_that_of_ensembles(served, tmp_path, mode):
    """That of a model keeps errors, and answers the next such request with nothing."""
    done = write_repository(
        served[mode], tmp_path / "models", name="m", text=True,
        settings=RepositoryOptions(response_cache=True),
    )  # fmt: skip
    cached = {
        name
        for name in done.models
        if read_config(tmp_path / "models" / name).response_cache.enable
    }
    assert cached == {name for name in done.models if name.endswith(("-cached", "-text"))}
    assert cached
    assert check_repository(tmp_path / "models") == {name: [] for name in done.models}


# -------------------------------------------------------------------------------------- files


def test_files_are_copied_and_what_it_takes_is_said_before(served, tmp_path, capsys):
    result = call(capsys, "triton", served["merged"], "--repository", tmp_path / "models",
                  "--name", "m", "--json")  # fmt: skip
    assert result.code == 0
    copied = tmp_path / "models/m-a/1/weights/base.safetensors"
    original = served["merged"] / "weights/base.safetensors"
    assert copied.read_bytes() == original.read_bytes()
    for graph, file in (("models/m-a/1", "model.onnx"), ("", "a.onnx")):
        onnx.load((tmp_path / graph if graph else served["merged"]) / file)  # refuses hard links
    assert result.err.index("bytes of memory") < result.err.index("writing m-a")
    document = result.document
    taken = sum(each.stat().st_size for each in (tmp_path / "models").rglob("*") if each.is_file())
    assert (document["own_bytes"], document["linked_bytes"]) == (taken, 0)
    assert document["memory_bytes"] > 3 * copied.stat().st_size * 0.5


def test_files_are_linked_where_that_is_asked_for(served, tmp_path, capsys):
    export = Path(shutil.copytree(served["merged"], tmp_path / "out"))
    result = call(capsys, "triton", export, "--repository", tmp_path / "models", "--name", "m",
                  "--hardlink", "--json")  # fmt: skip
    assert result.code == 0
    linked = tmp_path / "models/m-a/1/weights/base.safetensors"
    assert linked.samefile(export / "weights/base.safetensors")
    assert result.document["linked_bytes"] > result.document["own_bytes"] > 0
    assert call(capsys, "triton", "check", tmp_path / "models").code == 0


def test_without_hard_links_files_are_copied(served, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_repository(served["merged"], tmp_path / "models", name="m", hardlink=True)
    copied = tmp_path / "models/m-a/1/weights/base.safetensors"
    original = served["merged"] / "weights/base.safetensors"
    assert copied.read_bytes() == original.read_bytes()
    assert not copied.samefile(original)


def test_a_file_that_is_a_link_is_linked_to_what_it_is(served, tmp_path):
    export = Path(shutil.copytree(served["swappable"], tmp_path / "out"))
    pack = export / "adapters/a.safetensors"
    pack.rename(export / "adapters/kept")
    pack.symlink_to("kept")
    write_repository(export, tmp_path / "models", name="m", hardlink=True)
    (found,) = (tmp_path / "models/m/1/export/adapters").glob("a-*")
    assert not found.is_symlink()
    assert found.read_bytes() == (export / "adapters/kept").read_bytes()


def test_what_a_killed_run_left_is_completed(served, tmp_path, capsys):
    words = (served["merged"], "--repository", tmp_path / "models", "--name", "m", "--text")
    assert call(capsys, "triton", *words).code == 0
    whole = snapshot(tmp_path / "models")
    for name in ("m-c", "m-a-text", "m-tokenizer"):
        shutil.rmtree(tmp_path / "models" / name)
    assert call(capsys, "triton", *words).code == 0
    assert snapshot(tmp_path / "models") == whole
    shutil.rmtree(tmp_path / "models/m-c")
    (tmp_path / "models/m-a/config.pbtxt").write_text("")
    code, message = refused(capsys, *words)
    assert (code, "m-a' is there already" in message) == (3, True)
    assert not (tmp_path / "models/m-c").exists()


def test_a_path_that_a_shell_takes_apart_is_pointed_out(served, tmp_path, capsys):
    words = ("--repository", tmp_path / "my models", "--name", "m")
    result = call(capsys, "triton", served["swappable"], *words, "--json")
    assert result.code == 0
    (note,) = result.document["notes"]
    assert "my models" in note
    (found,) = check_repository(tmp_path / "my models")["m"]
    assert "through a shell" in found
    result = call(capsys, "triton", served["merged"], *words[:3], "o", "--json")
    assert result.document["notes"] == []  # no model of the Python backend
    assert check_repository(tmp_path / "my models")["o-a"] == []


def test_rows_of_a_batched_graph_are_served_all_or_by_name(served, tmp_path, capsys):
    words = (served["batched"], "--repository", tmp_path / "models", "--adapter", "a")
    code, message = refused(capsys, *words, "--backend", "onnxruntime")
    assert (code, "rows of all adapters" in message) == (2, True)
    assert call(capsys, "triton", *words, "--backend", "python", "--name", "m").code == 0


def test_past_a_handful_of_merged_adapters_the_python_backend_is_pointed_to(
    served, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("lora_export.triton.repository.HANDFUL", 2)
    result = call(capsys, "triton", served["merged"], "--repository", tmp_path / "models",
                  "--backend", "onnxruntime")  # fmt: skip
    assert result.code == 0
    assert "3 merged adapters are as many models" in result.err
    assert "--backend python" in result.err


def test_by_default_more_than_a_handful_go_to_the_python_backend(served, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_export.triton.models.HANDFUL", 2)
    done = write_repository(served["merged"], tmp_path / "models", name="m")
    assert (done.backend, done.models) == ("python", ("m",))


def test_what_is_copied_into_a_repository_imports_nothing_of_this_package(served, tmp_path):
    write_repository(served["swappable"], tmp_path / "models", name="m", text=True)
    sources = sorted((tmp_path / "models").rglob("*.py"))
    assert len(sources) == 10
    for path in sources:
        imported = re.findall(r"^\s*(?:from|import) (\S+)", path.read_text(), re.MULTILINE)
        outside = {each.partition(".")[0] for each in imported if not each.startswith(".")}
        assert not outside & {"lora_export", "torch", "onnx", "transformers"}, path


# ------------------------------------------------------------------------------------ refusals


def refused(capsys, *words: object) -> tuple[int, str]:
    result = call(capsys, "triton", *words)
    return result.code, result.message


def test_a_model_that_is_there_is_not_overwritten(served, tmp_path, capsys):
    words = (served["swappable"], "--repository", tmp_path / "models", "--name", "m")
    assert call(capsys, "triton", *words).code == 0
    before = snapshot(tmp_path / "models")
    code, message = refused(capsys, *words)
    assert (code, "is there already" in message) == (3, True)
    assert snapshot(tmp_path / "models") == before


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--adapter", "nobody"], 3, "has no adapter 'nobody'"),
        (["--name", "../m"], 2, "cannot be called '../m'"),
        (["--name", "m\n"], 2, "cannot be called"),
        (["--name", " "], 2, "cannot be called"),
        (["--name", "my model"], 2, "cannot be called"),
        (["--name", "m;date"], 2, "cannot be called"),
        (["--name", "$(date)"], 2, "cannot be called"),
        (["--name", "-m"], 2, "cannot be called"),
        (["--name", "möd"], 2, "cannot be called"),
        (["--name", "a\\b"], 2, "cannot be called"),
        (["--name", "m" * 200], 2, "cannot be called"),
        (["--way", "batched"], 4, "nothing can be served batched"),
        (["--way", "merged"], 4, "cannot be served merged"),
        (["--backend", "tensorrt", "--way", "swappable"], 2, "needs the Python backend"),
        (["--cache-bytes", "10"], 2, "cache_bytes is 10"),
        (["--max-batch-size", "0"], 2, "--max-batch-size"),
        (["--versions", "new"], 2, "--versions"),
        (["--versions", "1,3"], 2, "do not include version 1"),
        (["--resource", "R"], 2, "NAME=COUNT"),
    ],
)
def test_what_cannot_be_is_said(served, tmp_path, capsys, words, code, text):  # noqa: PLR0917
    result = call(capsys, "triton", served["swappable"], "--repository", tmp_path / "models",
                  *words)  # fmt: skip
    assert result.code == code
    assert text in result.err
    assert not (tmp_path / "models").exists()


def test_a_way_that_there_is_not_is_refused_by_name(served, tmp_path):
    with pytest.raises(UsageError, match="'mixed'") as told:
        write_repository(served["merged"], tmp_path / "models", name="m", way="mixed")
    assert "merged, swappable, batched, merge_at_load" in str(told.value.hint)
    assert not (tmp_path / "models").exists()


def test_a_damaged_export_is_not_deployed(served, tmp_path, capsys):
    export = shutil.copytree(served["swappable"], tmp_path / "out")
    pack = export / "adapters/b.safetensors"
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.unlink()
    pack.write_bytes(data)
    code, message = refused(capsys, export, "--repository", tmp_path / "models")
    assert (code, "adapters/b.safetensors" in message) == (3, True)


def test_a_failed_adapter_is_not_deployed(served, tmp_path, capsys):
    export = shutil.copytree(served["swappable"], tmp_path / "out")
    manifest = json.loads((export / "lora_export.json").read_text())
    manifest["adapters"]["b"]["pack"]["verification"] = "fail"
    (export / "lora_export.json").write_text(json.dumps(manifest))
    code, message = refused(capsys, export, "--repository", tmp_path / "models")
    assert (code, "'b' failed its verification" in message) == (5, True)


def test_an_adapter_that_quantization_drowned_is_not_deployed(served, tmp_path, capsys):
    export = shutil.copytree(served["swappable"], tmp_path / "out")
    manifest = json.loads((export / "lora_export.json").read_text())
    manifest["adapters"]["b"]["pack"]["loss"] = "fail"
    (export / "lora_export.json").write_text(json.dumps(manifest))
    code, message = refused(capsys, export, "--repository", tmp_path / "models")
    assert (code, "'b' lost more by quantization than allowed" in message) == (5, True)
    assert "--adapter a" in message
    assert not (tmp_path / "models").exists()


def test_without_tritonclient_it_is_said_what_to_install(served, tmp_path):
    result = command("triton", served["merged"], "--repository", tmp_path / "models",
                     without=["tritonclient"])  # fmt: skip
    assert result.code == 7
    assert "pip install -e '.[triton]'" in result.message


def test_a_recipe_has_a_section_and_flags_win(served, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: b\noutput: o\ntriton:\n  repository: models\n  name: m\n  max_batch_size: 4\n"
        "  response_cache: true\n"
    )
    result = call(capsys, "triton", served["swappable"], "--recipe", recipe,
                  "--max-batch-size", "2")  # fmt: skip
    assert result.code == 0, result.err
    config = read_config(tmp_path / "models/m")
    assert config.max_batch_size == 2
    assert read_config(tmp_path / "models/m-cached").response_cache.enable
    recipe.write_text("base: b\noutput: o\ntriton:\n  max_batch: 4\n")
    result = call(capsys, "triton", served["swappable"], "--recipe", recipe)
    assert (result.code, "max_batch_size" in result.message) == (2, True)
