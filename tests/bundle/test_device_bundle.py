"""The contents of a bundle: the export's own files, by choice, for a target that can run them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from lora_export.core.manifest import read_manifest
from lora_export.engines.engine_options import EngineOptions
from lora_export.ondevice.bundle.bundle_index import read_index
from lora_export.ondevice.bundle.main import main
from lora_export.ondevice.trt.build_settings import BuildSettings
from tests.cli.exports import manifest_of
from tests.cli.running import call, snapshot
from tests.helpers.builds import build
from tests.helpers.bundles import copied, read_report, unpacked
from tests.helpers.double import install_double

TARGET = "jetson-orin"


def test_the_export_is_in_it_as_it_is(exports, bundles):
    export, bundle_dir = exports("merged"), bundles("merged")
    held = snapshot(bundle_dir)
    for file in manifest_of(export)["files"]:
        if not file.startswith("reports/"):
            assert held[file] == (export / file).read_bytes(), file
    assert {"run.py", "bundle.json", "latency.npz", "lora_export/ondevice/bundle/main.py"} <= set(
        held
    )
    read_manifest(bundle_dir)
    assert not any("__pycache__" in file for file in held)


def test_an_unpacked_bundle_is_an_export(bundles, capsys, tmp_path):
    result = call(capsys, "verify", copied(bundles("swappable"), tmp_path / "bundle"), "--json")
    assert result.code == 0, result.err
    assert result.document["reports"]["parity"]["graphs"]["swappable"]["verdict"] == "pass"


@pytest.mark.parametrize("kind", ["merged", "swappable"])
def test_some_adapters_travel_without_the_others(exports, tmp_path, kind):
    bundle_dir = unpacked(exports(kind), tmp_path, adapters=["two"])
    assert set(read_index(bundle_dir).contents.checks) == {"base", "two"}
    assert not [file for file in snapshot(bundle_dir) if "one" in file]
    manifest = read_manifest(bundle_dir)
    assert set(manifest.adapters) == {"two"}
    assert set(manifest.files) == {
        file for file in snapshot(bundle_dir)
        if file in manifest_of(exports(kind))["files"]
    }  # fmt: skip


def test_what_tensorrt_builds_of_it_is_told(bundles):
    contents = read_index(bundles("decoder")).contents
    for stem in ("base", "one", "two"):
        engine = contents.graphs[stem].engine
        settings = BuildSettings.from_json(engine.settings)
        assert settings.precision == "float32"
        assert len(settings.profiles) == 2  # prefill and decode
        assert settings.profiles[0]["input_ids"].opt[1] > 1
        assert settings.profiles[1]["input_ids"].max[1] == 1


def test_tensorrt_is_given_a_swappable_graph_that_keeps_its_inputs(bundles):
    bundle_dir = bundles("swappable")
    engine = read_index(bundle_dir).contents.graphs["swappable"].engine
    graph = onnx.load(bundle_dir / engine.onnx, load_external_data=False).graph
    names = {each.name for each in graph.input}
    assert any(name.endswith("lora_A.weight") for name in names)
    assert not names & {each.name for each in graph.initializer}


def test_a_failed_graph_does_not_travel(exports, tmp_path, capsys):
    export = copied(exports("merged"), tmp_path / "export")
    manifest = manifest_of(export)
    manifest["graphs"]["one"]["verification"] = "fail"
    (export / "lora_export.json").write_text(json.dumps(manifest))
    out = tmp_path / "b.tar"
    result = call(capsys, "bundle", export, "--target", TARGET, "-o", out)
    assert result.code == 5
    assert "the verification failed: one" in result.message
    assert not out.exists()
    for more in (("--adapter", "two"), ("--allow-failed", "--replace")):
        assert call(capsys, "bundle", export, "--target", TARGET, "-o", out, *more).code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--target", "jetson-oren"), (2, "jetson-orin")),
        (("--target", "onnxruntime-cpu"), (2, "no engine")),
        (("--target", TARGET, "--adapter", "three"), (2, "'three'")),
        (("--target", TARGET, "--profile", "batch=4:1:8"), (2, "batch")),
        (("--target", TARGET, "--name", "../up"), (2, "../up")),
        (("--target", TARGET, "-o", "/"), (2, "is a folder")),
        (("--target", TARGET, "-o", "/dev/null/b.tar"), (3, "/dev/null")),
    ],
)
def test_what_cannot_be_packed_is_refused(exports, tmp_path, capsys, arguments, expected):
    code, words = expected
    where = () if "-o" in arguments else ("-o", tmp_path / "b.tar")
    result = call(capsys, "bundle", exports("merged"), *arguments, *where)
    assert result.code == code, result.err
    assert words in result.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "profile"),
    [
        ("merged", "batch=1,sequence=1:8:128"),  # the golden inputs have two rows
        ("merged", "batch=1:1:2,sequence=1:8:64"),  # the latency's has 128 tokens
        ("decoder", "batch=1:1:2,sequence=1:64:128,past_sequence=0:0:4"),
        ("two", "batch=1,sequence=1:8:128"),
        ("two", "batch=1:1:3,sequence=1:4:8,encoder_sequence=1:8:128"),  # the decoder's alone
        ("static", "batch=1:1:2,sequence=1:4:8"),
        ("swappable", "batch=1:1:2,sequence=1:8:128,lora_r=1:1:2"),  # an adapter has rank 4
    ],
)
def test_profiles_have_to_cover_what_is_checked(exports, tmp_path, capsys, kind, profile):
    result = call(capsys, "bundle", exports(kind), "--target", TARGET, "--profile", profile,
                  "-o", tmp_path / "b.tar")  # fmt: skip
    assert result.code == 2, result.err
    assert "no profile covers" in result.message
    assert not (tmp_path / "b.tar").exists()


def test_an_export_that_was_damaged_does_not_travel(exports, tmp_path, capsys):
    export = copied(exports("merged"), tmp_path / "export")
    path = export / "weights/one.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    result = call(capsys, "bundle", export, "--target", TARGET, "-o", tmp_path / "b.tar")
    assert result.code == 3
    assert "weights/one.safetensors" in result.message
    assert not (tmp_path / "b.tar").exists()


def test_a_dtype_that_the_target_lacks_is_refused(exports, tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    from lora_export.core import targets

    lacking = replace(targets.TARGETS[TARGET], dtypes=("float16",))
    monkeypatch.setitem(targets.TARGETS, TARGET, lacking)
    result = call(capsys, "bundle", exports("merged"), "--target", TARGET, "-o", tmp_path / "b.tar")
    assert result.code == 4
    assert "float32" in result.message
    assert "--dtype float16" in result.message


def test_the_recipe_of_a_target_ends_with_a_bundle(tiny, tmp_path, capsys):
    """`merge-and-build --target jetson-orin`: the export, and the bundle beside it."""
    base = tiny.base("bert")
    adapter = tiny.adapter(base, seed=1, strength=0.3)
    arguments = ("merge-and-build", "--base", base, "--adapter", f"one={adapter}", "--no-latency",
                 "--target", TARGET)  # fmt: skip
    result = call(capsys, *arguments, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    row = result.document["reports"]["bundle"]
    assert row["file"].endswith("out.jetson-orin.tar")
    verified = call(capsys, "bundle", "verify", tmp_path / "out.jetson-orin.tar", "--json")
    assert verified.document["sha256"] == row["sha256"]
    assert verified.document["holds"] == ["base", "one"]
    other = tmp_path / "elsewhere" / "b.tar"
    result = call(capsys, *arguments, "--out", tmp_path / "out2", "--bundle", other)
    assert result.code == 0, result.err
    assert "run.py" in result.out
    assert other.is_file()
    before = other.read_bytes()
    result = call(capsys, *arguments, "--out", tmp_path / "out2", "--bundle", other)
    assert result.code == 0, result.err
    assert other.read_bytes() == before
    result = call(capsys, *arguments, "--out", tmp_path / "out3", "--no-bundle")
    assert result.code == 0
    assert not (tmp_path / "out3.jetson-orin.tar").exists()


def test_a_bundle_without_a_target_is_refused_before_the_work(tiny, tmp_path, capsys):
    base = tiny.base("bert")
    result = call(capsys, "merge-and-build", "--base", base, "--out", tmp_path / "out", "--bundle",
                  tmp_path / "b.tar")  # fmt: skip
    assert result.code == 2
    assert "--target" in result.message
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_is_there_is_kept_unless_told_otherwise(exports, tmp_path, capsys):
    out = tmp_path / "b.tar"
    arguments = ("bundle", exports("merged"), "--target", TARGET, "-o", out)
    assert call(capsys, *arguments).code == 0
    before = out.read_bytes()
    result = call(capsys, *arguments, "--adapter", "two")
    assert result.code == 3
    assert "b.tar' exists already" in result.message
    assert "--replace" in result.message
    assert out.read_bytes() == before
    assert call(capsys, *arguments, "--adapter", "two", "--replace").code == 0
    assert out.read_bytes() != before


def test_a_file_that_is_no_bundle_is_refused_before_the_work(tiny, tmp_path, capsys):
    other = tmp_path / "notes.tar"
    other.write_text("mine")
    result = call(capsys, "merge-and-build", "--base", tiny.base("bert"), "--out", tmp_path / "out",
                  "--target", TARGET, "--bundle", other)  # fmt: skip
    assert result.code == 3
    assert "notes.tar' exists and is not a bundle" in result.message
    assert [path.name for path in tmp_path.iterdir()] == ["notes.tar"]
    assert other.read_text() == "mine"


def test_an_export_without_its_golden_outputs_does_not_travel(exports, tmp_path, capsys):
    export = copied(exports("merged"), tmp_path / "export")
    shutil.rmtree(export / "golden")
    result = call(capsys, "bundle", export, "--target", TARGET, "-o", tmp_path / "b.tar")
    assert result.code == 3
    assert "golden" in result.message
    assert not (tmp_path / "b.tar").exists()


def test_a_profile_may_begin_at_a_rank_above_that_of_an_adapter(
    exports, tmp_path, monkeypatch, capsys
):
    """Adapters and the base are padded to it: both have to lie in the profile on the device."""
    profile = {"batch": (1, 1, 3), "sequence": (1, 8, 128), "lora_r": (6, 8, 16)}
    bundle_dir = unpacked(exports("swappable"), tmp_path, options=EngineOptions(profiles=[profile]))
    install_double(monkeypatch)
    assert main(bundle_dir, ["--rounds", "10"]) == 0, capsys.readouterr().err
    rows = read_report(bundle_dir, "tensorrt-double")["parity"]["graphs"]
    assert {name: row["verdict"] for name, row in rows.items()} == dict.fromkeys(
        ("base", "one", "two"), "pass"
    )


def test_a_static_cache_travels_without_its_buffers(exports, bundles):
    bundle_dir = bundles("static")
    check = read_index(bundle_dir).contents.checks["one"]
    assert check.buffers["past_key_values.0.key"] == [4, 70, 8, "float32"]
    with np.load(bundle_dir / "latency.npz") as feeds:
        assert not any(name.startswith("past_key_values.") for name in feeds.files)
        assert feeds["input_ids"].shape == (1, 69)  # and room for a step
        assert feeds["attention_mask"].shape == (1, 70)


def test_a_decoder_of_few_positions_has_room_for_the_step(tiny, tmp_path, capsys):
    base = tiny.base("gpt2", "text-generation", n_positions=40)
    adapter = tiny.adapter(base, task="text-generation", labels_count=None, strength=0.3)
    build(base, {"one": adapter}, tmp_path / "out", task="text-generation",
          verify={"enabled": True})  # fmt: skip
    bundle_dir = unpacked(tmp_path / "out", tmp_path)
    assert main(bundle_dir, ["--rounds", "10", "--runtime", "onnxruntime"]) == 0
    rows = read_report(bundle_dir)["latency"]["graphs"]
    assert set(rows) == {"one, prefill", "one, step"}


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("my model (v2)", "my-model-v2-jetson-orin"),
        ("_draft", "draft-jetson-orin"),
        ("größe", "gr-e-jetson-orin"),
        ("模型", "export-jetson-orin"),
        ("x" * 120, "x" * 88 + "-jetson-orin"),
    ],
)
def test_any_folder_can_be_packed(exports, tmp_path, capsys, folder, name):
    export = copied(exports("merged"), tmp_path / folder)
    result = call(capsys, "bundle", export, "--target", TARGET, "--json")
    assert result.code == 0, result.err
    assert result.document["name"] == name
    assert result.document["file"] == str(tmp_path / f"{folder}.{TARGET}.tar")
    assert call(capsys, "bundle", "verify", result.document["file"]).code == 0


@pytest.mark.parametrize("name", ["x" * 101, "a b", "../up", ".hidden", "-rf", "größe"])
def test_a_name_that_no_bundle_has_is_refused_before_the_work(exports, tmp_path, capsys, name):
    result = call(capsys, "bundle", exports("merged"), "--target", TARGET, f"--name={name}", "-o",
                  tmp_path / "b.tar")  # fmt: skip
    assert result.code == 2, result.err
    assert "--name takes letters" in result.message
    assert list(tmp_path.iterdir()) == []


def test_the_export_in_the_working_directory_is_packed_beside_it(
    exports, tmp_path, capsys, monkeypatch
):
    export = copied(exports("merged"), tmp_path / "here")
    monkeypatch.chdir(export)
    result = call(capsys, "bundle", ".", "--target", TARGET, "--json")
    assert result.code == 0, result.err
    assert result.document["name"] == f"here-{TARGET}"
    assert result.document["file"] == str(tmp_path / f"here.{TARGET}.tar")
    assert snapshot(export) == snapshot(exports("merged"))


def test_a_bundle_for_a_target_without_engines_is_refused_before_the_work(tiny, tmp_path, capsys):
    result = call(capsys, "merge-and-build", "--base", tiny.base("bert"), "--out", tmp_path / "out",
                  "--bundle", tmp_path / "b.tar", "--target", "onnxruntime-cpu")  # fmt: skip
    assert result.code == 2
    assert "there is no engine for it" in result.message
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_for_rtx_is_told_that_its_engines_come_first(tiny, tmp_path, capsys):
    base = tiny.base("bert", "text-classification")
    result = call(
        capsys, "merge-and-build", "--base", base, "--adapter", f"one={tiny.adapter(base)}",
        "--task", "text-classification", "--target", "rtx",
        "--bundle", tmp_path / "a.tar", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 2
    assert "lora-export build OUT --target rtx" in result.message
    assert not (tmp_path / "out").exists()
