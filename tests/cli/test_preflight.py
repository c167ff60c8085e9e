"""``preflight`` as a user calls it: the report, the exit code, what is wrong with the call."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import onnx
import pytest

from lora_export.core.files import sha256_of_file
from tests.cli.running import HEAVY, call, command
from tests.helpers.builds import build
from tests.helpers.double import install_double

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-classification"


@pytest.fixture(scope="module")
def export(tiny, tmp_path_factory):
    """Return a swappable export: a base graph, and one with optional inputs."""
    base = tiny.base("bert", TASK)
    out = tmp_path_factory.mktemp("preflight") / "out"
    build(base, {"one": tiny.adapter(base)}, out, mode="swappable")
    return out


@pytest.fixture
def copied(export, tmp_path):
    """Return a copy of the export, to be changed."""
    shutil.copytree(export, tmp_path / "out")
    return tmp_path / "out"


def edit_graph(export_dir: Path, file: str, edit) -> None:
    """Change a graph as somebody would who also mends the manifest's hash."""
    model = onnx.load(export_dir / file, load_external_data=False)
    edit(model.graph)
    (export_dir / file).write_bytes(model.SerializeToString())
    text = (export_dir / "lora_export.json").read_text()
    name = file.removesuffix(".onnx")
    old = json.loads(text)["graphs"][name]["sha256"]
    (export_dir / "lora_export.json").write_text(
        text.replace(old, sha256_of_file(export_dir / file))
    )


def test_an_export_that_can_be_built(capsys, export):
    result = call(capsys, "preflight", export, "--target", "jetson-orin")
    assert (result.code, result.err) == (0, "")
    first = result.out.splitlines()[0]
    assert first.startswith("TensorRT 10.3 on jetson-orin: can be built, as far as is known")
    assert "base.onnx" in result.out
    assert "swappable.onnx" in result.out
    assert "optional inputs" in result.out
    assert "lora_r 1:4:64" in " ".join(result.out.split())  # the table wraps


def test_one_json_document(capsys, export):
    result = call(
        capsys, "preflight", export, "--target", "l4", "--graph", "swappable", "--json",
        "--tensorrt", "11.4", "--profile", "batch=1:2:3,sequence=5",
    )  # fmt: skip
    assert (result.code, result.err) == (0, "")
    document = result.document
    assert (document["buildable"], document["target"], document["tensorrt"]) == (True, "l4", "11.4")
    (graph,) = document["graphs"]
    assert (graph["graph"], graph["file"], graph["opset"]) == ("swappable", "swappable.onnx", 20)
    assert sum(graph["operators"].values()) == graph["operators"]["MatMul"] + sum(
        count for operator, count in graph["operators"].items() if operator != "MatMul"
    )
    codes = {each["code"]: each for each in graph["findings"]}
    assert set(codes) == {"dynamic-shape", "int64", "optional-input"}
    assert "batch 1:2:3, sequence 5:5:5" in codes["dynamic-shape"]["message"]
    assert "classifier.weight" in codes["optional-input"]["where"]
    low, high = graph["memory"]["build_bytes"]
    assert low > graph["memory"]["run_bytes"] > graph["memory"]["weights_bytes"] > 0
    assert high - low == graph["memory"]["weights_bytes"]


def test_it_needs_neither_torch_nor_a_runtime(export, capsys):
    without = (*HEAVY, "onnxruntime", "tensorrt")
    arguments = ("preflight", export, "--target", "jetson-thor", "--json")
    result = command(*arguments, without=without)
    assert result.code == 0, result.err
    assert {row["graph"] for row in result.document["graphs"]} == {"base", "swappable"}
    assert result.document == call(capsys, *arguments).document


def test_what_cannot_be_built_exits_with_4_and_names_the_first(capsys, copied):
    def refused(graph):
        graph.node[-1].op_type, graph.node[-1].domain = "FusedMatMul", "com.microsoft"

    edit_graph(copied, "base.onnx", refused)
    result = call(capsys, "preflight", copied, "--target", "jetson-orin", "--json")
    assert result.code == 4
    assert not result.document["buildable"]
    assert "base.onnx: com.microsoft::FusedMatMul" in result.message
    assert call(capsys, "preflight", copied, "--target", "h100", "--graph", "swappable").code == 0


def test_strict_counts_warnings(capsys, export):
    # about 0.35 to 0.46 MB to build, and 0.43 MB is there
    arguments = ("preflight", export, "--target", "jetson-orin", "--graph", "base",
                 "--profile", "batch=1,sequence=2", "--memory", "0.0004")  # fmt: skip
    loose = call(capsys, *arguments)
    assert loose.code == 0
    assert "--strict refuses them" in loose.out
    strict = call(capsys, *arguments, "--strict")
    assert strict.code == 4
    assert "memory" in strict.message


def test_too_little_memory_is_an_error(capsys, export):
    result = call(capsys, "preflight", export, "--target", "auto", "--memory", "0.001")
    assert result.code == 4
    assert "auto has 0.001 GiB" in result.message


def test_a_version_that_the_target_does_not_bring_is_said(capsys, export):
    result = call(capsys, "preflight", export, "--target", "jetson-orin", "--tensorrt", "10.7")
    assert result.code == 0
    assert "TensorRT 10.7: the software of jetson-orin is known to bring 10.3 (JetPack 6)" in (
        result.out
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--target", "jetson-orin", "--memory", "nan"], 2, "nan GiB"),
        (["--target", "jetson-orin", "--memory", "inf"], 2, "inf GiB"),
        (["--target", "jetson-orin", "--profile", f"batch=1:1:{10**20}"], 2, f"max {10**20}"),
        (["--target", "jetson-oron"], 2, "unknown target 'jetson-oron'"),
        (["--target", "onnxruntime-cpu"], 2, "there is no engine for it"),
        (["--target", "l4", "--graph", "nope"], 2, "no graph 'nope'"),
        (["--target", "l4", "--tensorrt", "ten"], 2, "'ten' is not a version"),
        (["--target", "l4", "--tensorrt", "8.6"], 4, "TensorRT 8.6 is older"),
        (["--target", "l4", "--profile", "batch"], 2, "--profile 'batch'"),
        (["--target", "l4", "--profile", "nope=1:2:3"], 2, "axis 'nope'"),
    ],
)
def test_what_is_wrong_with_the_call(capsys, export, arguments, code, message):
    result = call(capsys, "preflight", export, *arguments)
    assert result.code == code
    assert message in result.message
    assert result.out == ""


def test_the_target_has_to_be_named(capsys, export):
    result = call(capsys, "preflight", export)
    assert result.code == 2
    assert "--target" in result.err


def test_what_is_no_export_or_was_changed_is_refused(capsys, tmp_path, copied):
    result = call(capsys, "preflight", tmp_path / "nothing", "--target", "l4")
    assert (result.code, "is not an export directory" in result.message) == (3, True)
    (copied / "base.onnx").write_bytes((copied / "base.onnx").read_bytes()[:-7])
    result = call(capsys, "preflight", copied, "--target", "l4")
    assert result.code == 3
    assert "base.onnx" in result.message


def test_nothing_is_written(capsys, copied):
    before = sorted(path.name for path in copied.rglob("*"))
    call(capsys, "preflight", copied, "--target", "l4")
    assert sorted(path.name for path in copied.rglob("*")) == before


def test_rtx_needs_no_library_and_says_which_one_is_meant(export):
    without = (*HEAVY, "onnxruntime", "tensorrt", "tensorrt_rtx")
    result = command("preflight", export, "--target", "rtx", "--json", without=without)
    assert result.code == 0, result.err
    document = result.document
    assert (document["library"], document["tensorrt"]) == ("tensorrt-rtx", "1.7")
    assert document["parser"] is None
    (general,) = document["findings"]
    assert general["subject"] == "TensorRT for RTX 1.7"
    assert "tables of TensorRT 11.4" in general["message"]


def test_a_family_of_cards_is_checked_for_either_library(capsys, export):
    rtx = call(capsys, "preflight", export, "--target", "rtx-ada", "--builder", "tensorrt-rtx")
    assert rtx.out.startswith("TensorRT for RTX 1.7 on rtx-ada: can be built")
    plain = call(capsys, "preflight", export, "--target", "rtx-ada")
    assert plain.out.startswith("TensorRT 10.3 on rtx-ada: can be built")
    wrong = call(capsys, "preflight", export, "--target", "l4", "--builder", "tensorrt-rtx")
    assert wrong.code == 2
    old = call(capsys, "preflight", export, "--target", "rtx", "--tensorrt", "1.6")
    assert old.code == 4


@pytest.mark.parametrize(("target", "module"), [("rtx", "tensorrt_rtx"), ("l4", "tensorrt")])
def test_a_parser_that_is_not_installed_exits_with_7(capsys, export, monkeypatch, target, module):
    monkeypatch.setitem(sys.modules, module, None)
    result = call(capsys, "preflight", export, "--target", target, "--parser", "--json")
    assert result.code == 7
    assert "is not installed" in result.message
    assert f"pip install '{module.replace('_', '-')}" in result.err


def test_the_installed_parser_is_asked_beside_the_tables(capsys, copied, monkeypatch):
    install_double(monkeypatch, "10.16.1.11")
    arguments = ("preflight", copied, "--target", "l4", "--parser", "--json")
    read = call(capsys, *arguments)
    assert read.code == 0
    assert read.document["parser"] == "the library 'tensorrt-double' 10.16.1.11"
    for graph in read.document["graphs"]:
        assert graph["findings"][0]["code"] == "parser-reads"

    def refused(graph):
        graph.node[-1].op_type = "Unique"

    edit_graph(copied, "base.onnx", refused)
    result = call(capsys, *arguments)
    assert result.code == 4
    errors = [
        each
        for graph in result.document["graphs"]
        for each in graph["findings"]
        if each["severity"] == "error"
    ]
    assert {each["code"] for each in errors} == {"operator-refused", "parser-refused"}
    assert len({tuple(each["where"]) for each in errors}) == 1
