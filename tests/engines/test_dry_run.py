"""``build --dry-run``: the exact command line for each target, without TensorRT.

What the lines have to be is written out here, from ``trtexec --help`` and NVIDIA's guide.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper

from lora_export.core.targets import TARGETS
from lora_export.engines.engine_build import describe_build
from lora_export.engines.profiles import parse_profile, profiles_of
from lora_export.graph.spec.signature import read_signature
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.engine_builder import BuildJob
from tests.cli.running import call, command

if TYPE_CHECKING:
    from collections.abc import Callable

ENGINES = [
    (row.name, version) for row in TARGETS.values() if row.tensorrt for version in row.tensorrt
]
INTEGRATED = {"jetson-orin", "jetson-thor"}
"""Hardware compatibility is not supported on them (NVIDIA's guide, "Hardware Compatibility")."""


def graph(*inputs: tuple[str, list[str | int]]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.INT64, axes) for n, axes in inputs]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    return helper.make_model(helper.make_graph([], "g", values, [output]))


ENCODER = graph(("input_ids", ["batch", "sequence"]), ("attention_mask", ["batch", "sequence"]))
DECODER = graph(
    ("input_ids", ["batch", "sequence"]),
    ("attention_mask", ["batch", "total_sequence"]),
    ("past_key_values.0.key", ["batch", 2, "past_sequence", 8]),
)


def job(model: onnx.ModelProto, target: str, **settings: Any) -> BuildJob:
    profiles = settings.pop("profiles", None) or profiles_of(
        read_signature(model).inputs, longest=512
    )
    return BuildJob(
        root=Path("/out"),
        graph="one",
        target=target,
        onnx="one.onnx",
        weights=(),
        sha256={},
        base_fingerprint="0" * 64,
        settings=BuildSettings(precision="float16", profiles=profiles, **settings),
    )


CLASSIFIER_SHAPES = [
    "--minShapes=attention_mask:1x1,input_ids:1x1",
    "--optShapes=attention_mask:1x128,input_ids:1x128",
    "--maxShapes=attention_mask:8x512,input_ids:8x512",
]


def expected_line(target: str, version: str, options: list[str], shapes: list[str]) -> list[str]:
    strong = [] if version.startswith("11.") else ["--stronglyTyped"]  # the only kind, from 11 on
    start = f"engines/one.{target}.trt{version}"
    return [
        "trtexec", "--onnx=one.onnx", f"--saveEngine={start}.plan", *strong, *options, *shapes,
        f"--timingCacheFile=engines/{target}.trt{version}.timing", "--skipInference",
    ]  # fmt: skip


@pytest.mark.parametrize(("target", "version"), ENGINES)
def test_line_of_a_classifier(target: str, version: str) -> None:
    row = describe_build(job(ENCODER, target), version)
    expected = expected_line(target, version, ["--noTF32"], CLASSIFIER_SHAPES)
    assert shlex.split(row["trtexec"]) == expected
    assert row["flags"] == ["STRONGLY_TYPED", "-TF32"]


@pytest.mark.parametrize(("target", "version"), ENGINES)
def test_line_with_every_option(target: str, version: str) -> None:
    level = "none" if target in INTEGRATED else "ampere+"
    given = job(
        ENCODER, target, workspace_bytes=1 << 30, optimization_level=4, tf32=True,
        version_compatible=True, hardware_compatibility=level, strip_weights=True,
    )  # fmt: skip
    row = describe_build(given, version)
    options = [
        "--versionCompatible",
        "--stripWeights",
        *([] if level == "none" else ["--hardwareCompatibilityLevel=ampere+"]),
        "--builderOptimizationLevel=4",
        "--memPoolSize=workspace:1073741824B",
    ]
    assert shlex.split(row["trtexec"]) == expected_line(target, version, options, CLASSIFIER_SHAPES)
    assert {*row["flags"]} == {
        "STRONGLY_TYPED", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL",
    }  # fmt: skip


def test_line_of_a_decoder_has_a_profile_for_the_prompt_and_one_for_a_step() -> None:
    """In each, the mask is as long as the past and the new tokens together."""
    line = shlex.split(describe_build(job(DECODER, "jetson-orin"), "10.3")["trtexec"])
    start = line.index("--profile=0")
    shapes = [
        "--profile=0",
        "--minShapes=attention_mask:1x1,input_ids:1x1,past_key_values.0.key:1x2x0x8",
        "--optShapes=attention_mask:1x128,input_ids:1x128,past_key_values.0.key:1x2x0x8",
        "--maxShapes=attention_mask:8x1023,input_ids:8x512,past_key_values.0.key:8x2x511x8",
        "--profile=1",
        "--minShapes=attention_mask:1x1,input_ids:1x1,past_key_values.0.key:1x2x0x8",
        "--optShapes=attention_mask:1x257,input_ids:1x1,past_key_values.0.key:1x2x256x8",
        "--maxShapes=attention_mask:8x512,input_ids:8x1,past_key_values.0.key:8x2x511x8",
    ]
    assert line[start : start + 8] == shapes
    for each in (shape for shape in shapes if "Shapes" in shape):
        mask, ids, past = (part.rsplit(":", 1)[1].split("x") for part in each.split(","))
        assert int(mask[1]) == int(ids[1]) + int(past[2])


def test_refittable_weights_have_no_line() -> None:
    row = describe_build(job(ENCODER, "jetson-orin", refittable=("w",)), "10.3")
    assert row["trtexec"] is None
    assert "REFIT_INDIVIDUAL" in row["flags"]


def test_profiles_are_what_the_user_says() -> None:
    given = parse_profile("sequence=1,past_sequence=0:64:128,batch=2")
    (profile,) = profiles_of(read_signature(DECODER).inputs, [given], longest=512)
    assert profile["attention_mask"].max == (2, 129)
    assert profile["past_key_values.0.key"].opt == (2, 2, 64, 8)
    line = describe_build(job(DECODER, "l4", profiles=(profile,)), "10.3")["trtexec"]
    assert "--profile=" not in line
    assert "--maxShapes=attention_mask:2x129,input_ids:2x1,past_key_values.0.key:2x2x128x8" in line


def test_the_command_prints_it_without_tensorrt_and_torch(export: Callable[[str], Path]) -> None:
    export_dir = export("merged")
    result = command(
        "build", export_dir, "--target", "jetson-orin", "--dry-run", "--json",
        "--profile", "batch=1:1:4,sequence=8:64:128",
        without=("tensorrt", "torch", "transformers", "onnxruntime"),
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.document["export"] == str(export_dir)
    first = result.document["dry_run"][0]
    assert first["plan"] == "engines/one.jetson-orin.trt10.3.plan"
    assert first["trtexec"] == (
        "trtexec --onnx=one.onnx --saveEngine=engines/one.jetson-orin.trt10.3.plan "
        "--stronglyTyped --noTF32 --minShapes=attention_mask:1x8,input_ids:1x8 "
        "--optShapes=attention_mask:1x64,input_ids:1x64 "
        "--maxShapes=attention_mask:4x128,input_ids:4x128 "
        "--timingCacheFile=engines/jetson-orin.trt10.3.timing --skipInference"
    )


def test_the_line_can_be_pasted_from_here(
    export: Callable[[str], Path], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """A stand-in for trtexec, on PATH, finds what it reads and may write where it is told to."""
    shutil.copytree(export("merged"), tmp_path / "my exports" / "out", dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "my exports" / "out" / "engines", ignore_errors=True)
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "trtexec"
    stand_in.write_text(
        "#!/bin/sh\nfor each; do case $each in\n"
        '--onnx=*) cat "${each#*=}" >/dev/null || exit 1;;\n'
        '--saveEngine=*) echo plan >"${each#*=}" || exit 1;;\nesac; done\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    result = call(capsys, "build", "my exports/out", "--target", "jetson-orin", "--dry-run",
                  "--graph", "one")  # fmt: skip
    assert result.code == 0, result.err
    line = result.out.splitlines()[-1].strip()
    path = f"{stand_in.parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", line], check=True, env={**os.environ, "PATH": path})
    assert (tmp_path / "my exports/out/engines/one.jetson-orin.trt10.3.plan").is_file()


def test_profiles_of_a_recipe(export: Callable[[str], Path], tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: base\noutput: out\nprofiles:\n"
        "  - {batch: [1, 2, 4], sequence: [1, 64, 128]}\n  - {batch: 1, sequence: 16}\n"
    )
    export_dir = export("merged")
    target = ["--target", "jetson-orin", "--dry-run"]
    result = call(capsys, "build", export_dir, *target, "--recipe", recipe, "--graph", "one")
    assert result.code == 0, result.err
    assert "input_ids       1x1 2x64 4x128" in result.out
    assert "input_ids       1x16 1x16 1x16" in result.out
    recipe.write_text("base: base\noutput: out\nprofiles:\n  - {batch: [1, 2]}\n")
    result = call(capsys, "build", export_dir, *target, "--recipe", recipe)
    assert result.code == 2
    assert "profiles" in result.message
