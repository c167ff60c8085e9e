"""Damage done to a repository, and whether it is found and named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from lora_export.triton.check_repository import check_repository
from lora_export.triton.protobuf_schema import config_text, parse_config
from lora_export.triton.repository import write_repository
from lora_export.triton.repository_options import RepositoryOptions
from tests.cli.running import call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def repository(served, tmp_path) -> Path:
    folder = tmp_path / "models"
    write_repository(served["merged"], folder, name="o", adapters=["a"])
    write_repository(served["swappable"], folder, name="p", text=True)
    assert not any(check_repository(folder).values())
    return folder


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))

    return change


def unlink(file: str) -> Callable[[Path], None]:
    return lambda root: next(root.glob(file)).unlink()


def shorten(file: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = next(root.glob(file))
        data = path.read_bytes()
        path.unlink()  # it is linked to the export
        path.write_bytes(data[: len(data) // 2])

    return change


def rename(root: Path) -> None:
    (root / "o-a").rename(root / "other")


def climb(root: Path) -> None:
    path = root / "p/1/export/serving.json"
    table = json.loads(path.read_text())
    table["adapters"]["a"]["file"] = "../../../../etc/passwd"
    path.write_text(json.dumps(table))


def flip(file: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = next(root.glob(file))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.unlink()  # it is linked to the export
        path.write_bytes(data)

    return change


def index(**keys: object) -> Callable[[Path], None]:
    """Change keys of the index, or where a value is a function what is there."""

    def change(root: Path) -> None:
        path = root / "p/1/export/serving.json"
        table = json.loads(path.read_text())
        for key, value in keys.items():
            if callable(value):
                value(table[key])
            else:
                table[key] = value
        path.write_text(json.dumps(table))

    return change


def add_line(file: str, line: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / file).open("a") as stream:
            stream.write(f"\n{line}\n")

    return change


def pipe(root: Path) -> None:
    (root / "o-a/config.pbtxt").unlink()
    os.mkfifo(root / "o-a/config.pbtxt")  # nobody will ever write into it


def no_steps(root: Path) -> None:
    path = root / "p-text/config.pbtxt"
    config = parse_config(path)
    config.ClearField("ensemble_scheduling")
    path.write_bytes(config_text(config))


def link_outside(root: Path) -> None:
    path = root / "o-a/1/weights/base.safetensors"
    shutil.copy(path, root.parent / "weights")
    path.unlink()
    path.symlink_to(root.parent / "weights")


def link_to_itself(root: Path) -> None:
    path = root / "o-a/1/model.onnx"
    path.unlink()
    path.symlink_to(path)


def endless(root: Path) -> None:
    path = root / "p/1/export/serving.json"
    path.unlink()
    path.symlink_to("/dev/zero")


def other_weights(root: Path) -> None:
    """Let the graph read weights from a place outside."""
    path = root / "o-a/1/model.onnx"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b"weights/base.safetensors", b"../../../../../../passwd"))


def foreign_pack(root: Path) -> None:
    """Give an adapter a pack that says another base, under the name of its content."""
    path = next(root.glob("p/1/export/adapters/a-*"))
    data = path.read_bytes()
    fingerprint = json.loads((root / "p/1/export/serving.json").read_text())["fingerprint"]
    data = data.replace(fingerprint.encode(), fingerprint[::-1].encode())
    name = f"a-{hashlib.sha256(data).hexdigest()[:12]}.safetensors"
    path.with_name(name).write_bytes(data)
    index(adapters=lambda lines: lines["a"].update(file=f"adapters/{name}"))(root)


DAMAGE = {
    "a word that is no field": (edit("o-a/config.pbtxt", "name:", "nome:"), "o-a", "nome"),
    "another name": (rename, "other", "its name is 'o-a'"),
    "an unknown input": (edit("o-a/config.pbtxt", '"input_ids"', '"ids"'), "o-a", "'ids'"),
    "another dtype": (edit("o-a/config.pbtxt", "TYPE_INT64", "TYPE_INT32"), "o-a", "TYPE_INT32"),
    "another width": (edit("o-a/config.pbtxt", "dims: 3", "dims: 4"), "o-a", "[-1, 4]"),
    "no batch": (edit("o-a/config.pbtxt", "max_batch_size: 16", "max_batch_size: 0"), "o-a",
                 "max_batch_size 0"),
    "no graph": (unlink("o-a/1/model.onnx"), "o-a", "1/model.onnx is missing"),
    "no weights": (unlink("o-a/1/weights/base.safetensors"), "o-a", "which is missing"),
    "half the weights": (shorten("o-a/1/weights/a.safetensors"), "o-a", "which has"),
    "no warm-up": (unlink("o-a/warmup/*.input_ids"), "o-a", "golden-a.input_ids is missing"),
    "half a warm-up": (shorten("o-a/warmup/*.input_ids"), "o-a", "bytes"),
    "a backend": (edit("o-a/config.pbtxt", '"onnxruntime"', '"onnx"'), "o-a", "'onnx'"),
    "no code": (unlink("p/1/model.py"), "p", "1/model.py is missing"),
    "no pack": (unlink("p/1/export/adapters/a-*"), "p", "which is missing"),
    "a path that climbs": (climb, "p", "leads outside"),
    "half an index": (shorten("p/1/export/serving.json"), "p", "damaged"),
    "no adapter input": (edit("p/config.pbtxt", '"adapter"', '"adaptor"'), "p", "'adapter'"),
    "a step that is not a model": (edit("p-text/config.pbtxt", '"p-tokenizer"', '"nobody"'),
                                "p-text", "'nobody'"),
    "a cache beside an optional adapter": (
        edit("p/config.pbtxt", "backend:", "response_cache { enable: true } backend:"),
        "p", "response cache"),
    "a cache that keeps errors": (
        edit("o-a/config.pbtxt", "backend:", "response_cache { enable: true } backend:"),
        "o-a", "keeps errors"),
    "a size of nothing": (edit("o-a/config.pbtxt", "dims: -1", "dims: 0"), "o-a", "at least 1"),
    "a size below −1": (edit("o-a/config.pbtxt", "dims: -1", "dims: -5"), "o-a", "at least 1"),
    "another reshape": (
        edit("o-a/config.pbtxt", "dims: 3", "dims: 4 reshape { shape: 3 }"), "o-a", "reshaped to"),
    "two names for a row": (edit("p/config.pbtxt", "dims: 1", "dims: -1"), "p", "one name"),
    "a batch of none": (
        edit("o-a/config.pbtxt", "max_queue", "preferred_batch_size: 0 max_queue"),
        "o-a", "preferred batch size 0"),
    "no version": (
        edit("o-a/config.pbtxt", "num_versions: 1", "num_versions: 0"), "o-a", "latest 0 versions"),
    "an ensemble of nothing": (no_steps, "p-text", "no step"),
    "no multiple": (
        edit("p-tokenizer/config.pbtxt", 'string_value: "8"', 'string_value: "0"'),
        "p-tokenizer", "'multiple'"),
    "half a tokenizer": (shorten("p-tokenizer/1/tokenizer.json"), "p-tokenizer", "JSON"),
    "a configuration of bytes": (
        lambda root: (root / "o-a/config.pbtxt").write_bytes(b"\xff\xfe"), "o-a", "UTF-8"),
    "a link outside": (link_outside, "o-a", "leads out of the repository"),
    "a link to itself": (link_to_itself, "o-a", "Too many levels of symbolic links"),
    "a pipe": (pipe, "o-a", "it is a named pipe"),
    "a graph from elsewhere": (
        add_line("o-a/config.pbtxt", 'default_model_filename: "/etc/passwd"'), "o-a", "outside"),
    "code from elsewhere": (
        add_line("p/config.pbtxt", 'default_model_filename: "../../../x.py"'), "p", "outside"),
    "weights from elsewhere": (other_weights, "o-a", "leads outside"),
    "a warm-up from elsewhere": (
        edit("o-a/config.pbtxt", 'input_data_file: "', 'input_data_file: "../1/'), "o-a",
        "leads outside"),
    "a number that is not a dtype": (
        edit("o-a/config.pbtxt", "data_type: TYPE_INT64", "data_type: 99"), "o-a", "99"),
    "an input twice": (
        add_line("o-a/config.pbtxt", 'input { name: "input_ids" data_type: TYPE_INT64 dims: -1 }'),
        "o-a", "twice"),
    "less than no batch": (
        edit("o-a/config.pbtxt", "max_batch_size: 16", "max_batch_size: -1"), "o-a", "-1"),
    "a folder without a model": (lambda root: (root / "o-a/2").mkdir(), "o-a", "2/model.onnx"),
    "a version without code": (lambda root: (root / "p/2").mkdir(), "p", "2/model.py is missing"),
    "half the code": (unlink("p/1/rows.py"), "p", "1/rows.py is missing"),
    "code that is none": (edit("p/1/model.py", "class ", "klass "), "p", "is not Python"),
    "no index": (unlink("p/1/export/serving.json"), "p", "serving.json is missing"),
    "an index without end": (endless, "p", "is not a file"),
    "no tokenizer": (unlink("p-tokenizer/1/tokenizer.json"), "p-tokenizer", "tokenizer.json"),
    "half a pack": (shorten("p/1/export/adapters/a-*"), "p", "another SHA-256"),
    "a bit of a pack": (flip("p/1/export/adapters/b-*"), "p", "another SHA-256"),
    "a bit of a graph": (flip("p/1/export/swappable-*.onnx"), "p", "another SHA-256"),
    "a pack of another base": (foreign_pack, "p", "is for another base"),
    "a pack under another name": (
        index(adapters=lambda lines: lines["a"].update(file="a/x")), "p", "which is missing"),
    "a pack that is a number": (
        index(adapters=lambda lines: lines["a"].update(file=5)), "p", "file of 'a' is 5, no text"),
    "a size without end": (index(graph_bytes=float("inf")), "p", "graph_bytes is inf"),
    "a size that is not a number": (index(graph_bytes=float("nan")), "p", "graph_bytes is nan"),
    "a size below nothing": (
        index(adapters=lambda lines: lines["a"].update(nbytes=-1)), "p", "nbytes of 'a' is -1"),
    "an input that the index forgets": (
        index(inputs=lambda names: names.pop()), "p", "has the inputs"),
    "another output": (index(outputs=["scores"]), "p", "lacks the output 'scores'"),
    "another base": (index(fingerprint="0" * 64), "p", "base_fingerprint"),
    "an adapter that never fits": (
        index(adapters=lambda lines: lines["a"].update(nbytes=1 << 60)), "p", "cache_bytes is"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_named(repository, capsys, what):
    change, model, text = DAMAGE[what]
    change(repository)
    result = call(capsys, "triton", "check", repository, "--json")
    assert result.code == 3
    found = result.document["models"][model]
    assert any(text in line for line in found), found


def test_rows_of_adapters_are_those_of_the_stacks(served, tmp_path):
    folder = tmp_path / "models"
    write_repository(served["batched"], folder, name="p")
    assert check_repository(folder) == {"p": []}
    for row in (0, 4):
        index(adapters=lambda lines, row=row: lines["b"].update(row=row))(folder)
        graph = next(folder.glob("p/1/export/*.onnx")).name
        (found,) = check_repository(folder)["p"]
        assert found == f"the row of 'b' is {row}, {graph} has rows up to 3"


def test_a_model_merged_at_load_knows_where_its_matrices_go(served, tmp_path):
    folder = tmp_path / "models"
    write_repository(served["swappable"], folder, name="p", way="merge_at_load")
    assert check_repository(folder) == {"p": []}
    index(matrices={})(folder)
    found = check_repository(folder)["p"]
    assert found
    assert all("does not say which weight" in line for line in found)


def test_somebody_elses_models_are_checked_as_far_as_they_are_known(served, tmp_path):
    folder = tmp_path / "models"
    write_repository(served["merged"], folder, name="o", adapters=["a"])
    edit("o-a/config.pbtxt", 'backend: "onnxruntime"', 'platform: "onnxruntime_onnx"')(folder)
    (folder / "own/1").mkdir(parents=True)
    (folder / "own/1/model.py").write_text("import numpy\n")
    (folder / "own/config.pbtxt").write_text('backend: "python"\n')
    assert check_repository(folder) == {"o-a": [], "own": []}


def test_what_is_no_repository(tmp_path, capsys):
    for folder in (tmp_path / "absent", tmp_path):
        result = call(capsys, "triton", "check", folder)
        assert result.code == 3
        assert str(folder) in result.message


def test_nobody_answers(repository, capsys):
    result = call(capsys, "triton", "check", repository, "--server", "127.0.0.1:9")
    assert (result.code, "no Triton server answers" in result.message) == (3, True)
    result = call(capsys, "triton", "check", repository, "--server", "file:///etc/passwd")
    assert (result.code, "not an HTTP address" in result.message) == (2, True)


def test_every_setting_is_sound(served, tmp_path):
    settings = RepositoryOptions(
        max_queue_size=3, queue_timeout_us=5, versions="all", resources={"r": 1}
    )
    write_repository(served["batched"], tmp_path / "models", name="m", settings=settings)
    assert check_repository(tmp_path / "models") == {"m": []}
