"""Damage done to a repository, and whether it is found and named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lora_export.deploy.triton import write_repository
from lora_export.deploy.triton_check import check_repository
from lora_export.deploy.triton_settings import Settings
from tests.cli.running import call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("deploy")


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
    "a step that is no model": (edit("p-text/config.pbtxt", '"p-tokenizer"', '"nobody"'),
                                "p-text", "'nobody'"),
    "a cache beside an optional adapter": (
        edit("p/config.pbtxt", "backend:", "response_cache { enable: true } backend:"),
        "p", "response cache"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_named(repository, capsys, what):
    change, model, text = DAMAGE[what]
    change(repository)
    result = call(capsys, "triton", "check", repository, "--json")
    assert result.code == 3
    found = result.document["models"][model]
    assert any(text in line for line in found), found


def test_what_is_no_repository(tmp_path, capsys):
    for folder in (tmp_path / "absent", tmp_path):
        result = call(capsys, "triton", "check", folder)
        assert result.code == 3
        assert str(folder) in result.message


def test_nobody_answers(repository, capsys):
    result = call(capsys, "triton", "check", repository, "--server", "127.0.0.1:9")
    assert (result.code, "no Triton server answers" in result.message) == (3, True)
    result = call(capsys, "triton", "check", repository, "--server", "file:///etc/passwd")
    assert (result.code, "no HTTP address" in result.message) == (2, True)


def test_every_setting_is_sound(served, tmp_path):
    settings = Settings(max_queue_size=3, queue_timeout_us=5, versions="all", resources={"r": 1})
    write_repository(served["batched"], tmp_path / "models", name="m", settings=settings)
    assert check_repository(tmp_path / "models") == {"m": []}
