"""A core install with a graph cache exports what an environment with torch exports."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import HEAVY, call, snapshot
from tests.helpers.bundles import old_python, run_bundle
from tests.helpers.core_environment import core_command, core_python, core_python_3_10

if TYPE_CHECKING:
    from pathlib import Path

ABSENT = sorted({*HEAVY, "onnxruntime", "tokenizers", "safetensors"} - {"onnx_ir"})
KINDS = {"bert": "text-classification", "gpt2": "text-generation"}


@pytest.fixture
def program() -> Path:
    return core_python()


def succeed(program: Path, *arguments: object) -> None:
    done = core_command(program, *arguments)
    assert done.code == 0, done.err


def test_environment_has_the_core_alone(program: Path) -> None:
    code = (
        "import importlib.util as u, json, sys;"
        "print(json.dumps([n for n in json.loads(sys.argv[1]) if u.find_spec(n)]))"
    )
    found = subprocess.run(
        [program, "-c", code, json.dumps([*ABSENT, "onnx_ir"])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(found.stdout) == ["onnx_ir"]


@pytest.mark.parametrize("kind", KINDS)
def test_export_from_a_cached_graph_is_the_traced_one(program, tiny, tmp_path, capsys, kind):
    base = tiny.base(kind, KINDS[kind])
    adapter = tiny.adapter(base)
    asked = ("export", "--base", base, "--adapter", f"mine={adapter}", "--quiet", "--out")
    assert call(capsys, *asked, tmp_path / "traced").code == 0
    succeed(program, *asked, tmp_path / "cached")
    assert snapshot(tmp_path / "cached") == snapshot(tmp_path / "traced")


@pytest.mark.slow
def test_commands_of_the_core_give_what_the_whole_gives(program, tiny, tmp_path, capsys) -> None:
    base = tiny.base("bert", KINDS["bert"])
    adapter, other = tiny.adapter(base), tiny.adapter(base, seed=5)
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    given = ("--base", base, "--adapter", f"mine={adapter}", "--quiet")
    for line in (
        ("merge-and-build", *given, "--no-verify", "--no-latency", "--out", "out"),
        ("add", "out", "--adapter", f"other={other}", "--base", base, "--quiet"),
        ("quantize", "out", "--weights", "int8", "--out", "small", "--quiet"),
        ("layout", "out", "--for", "optimum", "--out", "optimum", "--quiet"),
        ("bundle", "out", "--target", "jetson-orin", "--out", "out.tar", "--quiet"),
        ("merge", "--base", base, "--adapter", adapter, "--out", "merged", "--quiet"),
        ("inspect", "out", "--json"),
        ("remove", "out", "other", "--quiet"),
    ):  # fmt: skip
        with contextlib.chdir(here):
            whole = call(capsys, *line)
        with contextlib.chdir(there):
            alone = core_command(program, *line)
        assert (alone.code, alone.out) == (0, whole.out), f"{line[0]}: {alone.err}"
    assert snapshot(there) == snapshot(here)
    document = json.loads(core_command(program, "inspect", there / "out", "--json").out)
    assert document["graphs"]["mine"]["verification"] == "unverified"


@pytest.mark.slow
def test_python_3_10_makes_base_adapter_integers_and_bundle(tiny, tmp_path, capsys) -> None:
    """JetPack 6's Python, which transformers 5 has no release for: all of it on the device."""
    program = core_python_3_10()
    base = tiny.base("bert", KINDS["bert"])
    asked = ("export", "--base", base, "--quiet", "--adapter", f"mine={tiny.adapter(base)}")
    traced, device = tmp_path / "traced", tmp_path / "device"
    assert call(capsys, *asked, "--out", traced).code == 0
    succeed(program, *asked, "--out", device)
    assert snapshot(device) == snapshot(traced)
    other = tiny.adapter(base, seed=5)
    succeed(program, "add", device, "--adapter", f"other={other}", "--base", base, "--quiet")
    succeed(program, "quantize", device, "--weights", "int8", "--out", tmp_path / "small")
    bundle = tmp_path / "bundle.tar"
    succeed(program, "bundle", device, "--target", "jetson-orin", "--out", bundle, "--quiet")
    succeed(program, "bundle", "verify", bundle)
    succeed(program, "bundle", "unpack", bundle, "--out", tmp_path / "unpacked")
    runtime = old_python()
    if runtime is None:
        pytest.skip("no Python 3.10 with ONNX Runtime: the bundle was packed, and not run")
    (entry,) = (tmp_path / "unpacked").rglob("run.py")
    done = run_bundle(entry.parent, "verify", "--runtime", "onnxruntime", python=runtime)
    assert done.returncode == 0, done.stderr
    assert "it was not verified" in done.stdout


def test_graph_that_is_not_cached_is_exit_7_and_the_difference(
    program, tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("LORA_EXPORT_CACHE", str(tmp_path / "cache"))
    base, copy = tmp_path / "tanh", tmp_path / "relu"  # of gelu there is a template
    for folder in (base, copy):
        shutil.copytree(tiny.base("bert", KINDS["bert"]), folder)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "hidden_act": folder.name}))
    cached = ("export", "--base", base, "--quiet", "--out", tmp_path / "cached")
    assert call(capsys, *cached, "--adapter", tiny.adapter(base)).code == 0
    asked = ("export", "--base", copy, "--adapter", tiny.adapter(base), "--out", tmp_path / "out")
    done = core_command(program, *asked, "--quiet")
    assert done.code == 7
    assert "packages that are not installed: torch, transformers" in done.message
    assert "the nearest graph of 'bert' has hidden_act 'tanh', not 'relu'" in done.message
    assert not (tmp_path / "out").exists()
