"""``build --dry-run``: the exact command line for each target, without TensorRT.

To write the golden file anew, after a change that is meant: ``LORA_EXPORT_WRITE_GOLDEN=1``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from lora_export.core.targets import TARGETS
from lora_export.engines.engine_build import described
from lora_export.engines.profiles import parse_profile, profiles_of
from lora_export.graph.spec.signature import read_signature
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.engine_builder import BuildJob
from tests.cli.running import call, command

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "dry_run.json"
ENGINES = [row for row in TARGETS.values() if row.tensorrt]


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


def lines() -> dict[str, dict[str, Any]]:
    """What is printed for each target and version: a classifier, a decoder, and every option."""
    found: dict[str, dict[str, Any]] = {}
    for row in ENGINES:
        for version in row.tensorrt:
            options: dict[str, Any] = {
                "workspace_bytes": 1 << 30,
                "optimization_level": 4,
                "tf32": True,
                "version_compatible": True,
                "hardware_compatibility": "none" if row.bound_plans else "ampere+",
                "strip_weights": True,
            }
            jobs = {
                "classifier": job(ENCODER, row.name),
                "options": job(ENCODER, row.name, **options),
            }
            if row.name == "jetson-orin":
                jobs["decoder"] = job(DECODER, row.name)
            rows = {name: described(each, version) for name, each in jobs.items()}
            found[f"{row.name} {version}"] = {
                name: {"trtexec": each["trtexec"], "flags": each["flags"]}
                for name, each in rows.items()
            }
    return found


def test_lines_of_every_target() -> None:
    found = lines()
    if os.environ.get("LORA_EXPORT_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())
    assert {key.split()[0] for key in found} == {row.name for row in ENGINES}


def test_strong_types_have_no_flag_from_11_on() -> None:
    for key, rows in lines().items():
        old = int(key.split()[1].split(".")[0]) < 11
        assert all(("--stronglyTyped" in row["trtexec"]) == old for row in rows.values())


def test_refittable_weights_have_no_line() -> None:
    row = described(job(ENCODER, "jetson-orin", refittable=("w",)), "10.3")
    assert row["trtexec"] is None
    assert "REFIT_INDIVIDUAL" in row["flags"]


def test_profiles_are_what_the_user_says() -> None:
    given = parse_profile("sequence=1,past_sequence=0:64:128,batch=2")
    (profile,) = profiles_of(read_signature(DECODER).inputs, [given], longest=512)
    assert profile["attention_mask"].max == (2, 129)
    assert profile["past_key_values.0.key"].opt == (2, 2, 64, 8)
    line = described(job(DECODER, "l4", profiles=(profile,)), "10.3")["trtexec"]
    assert "--profile=" not in line
    assert "--maxShapes=attention_mask:2x129,input_ids:2x1,past_key_values.0.key:2x2x128x8" in line


def test_the_command_prints_it_without_tensorrt_and_torch(export: Callable[[str], Path]) -> None:
    root = export("merged")
    result = command(
        "build", root, "--target", "jetson-orin", "--dry-run", "--json",
        "--profile", "batch=1:1:4,sequence=8:64:128",
        without=("tensorrt", "torch", "transformers", "onnxruntime"),
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.document["export"] == str(root)
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
    root = export("merged")
    target = ["--target", "jetson-orin", "--dry-run"]
    result = call(capsys, "build", root, *target, "--recipe", recipe, "--graph", "one")
    assert result.code == 0, result.err
    assert "input_ids       1x1 2x64 4x128" in result.out
    assert "input_ids       1x16 1x16 1x16" in result.out
    recipe.write_text("base: base\noutput: out\nprofiles:\n  - {batch: [1, 2]}\n")
    result = call(capsys, "build", root, *target, "--recipe", recipe)
    assert result.code == 2
    assert "profiles" in result.message
