"""A repository brought up to date with an export: what is new, other, gone and damaged."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from lora_export.commands.remove import remove
from lora_export.core.progress import Silent
from lora_export.triton.check_repository import check_repository
from lora_export.triton.refresh_repository import refresh_repository, remove_models
from lora_export.triton.repository import write_repository
from lora_export.triton.repository_options import RepositoryOptions
from tests.cli.running import snapshot, stagings
from tests.helpers.triton import replaced_exports

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CASES = [("merged", "onnxruntime"), ("merged", "python"), ("swappable", "python"),
         ("batched", "onnxruntime"), ("batched", "python")]  # fmt: skip

ALL = ("a", "b", "c")


@pytest.fixture(scope="module")
def replaced(served, tiny, tmp_path_factory) -> dict[str, Path]:
    """The exports with another adapter of the name ``a``."""
    return replaced_exports(tiny, served, tmp_path_factory.mktemp("replaced"))


def refresh(export: Path, repository: Path, adapters: Sequence[str], backend: str = "python",
            settings: RepositoryOptions | None = None) -> list[str]:  # fmt: skip
    """Bring the models ``m`` up to date; return their files, below the repository."""
    found = refresh_repository(
        export, repository, name="m", adapters=adapters, backend=backend,
        settings=settings or RepositoryOptions(), progress=Silent(),
    )  # fmt: skip
    return [path.relative_to(repository).as_posix() for path in found]


@pytest.mark.parametrize(("mode", "backend"), CASES)
def test_a_new_repository_is_that_of_the_command(served, tmp_path, mode, backend):
    files = refresh(served[mode], tmp_path / "models", ALL, backend)
    write_repository(served[mode], tmp_path / "other", name="m", backend=backend)
    assert snapshot(tmp_path / "models") == snapshot(tmp_path / "other")
    assert sorted(files) == sorted(
        path.relative_to(tmp_path / "models").as_posix()
        for path in (tmp_path / "models").rglob("*") if path.is_file()
    )  # fmt: skip
    before = snapshot(tmp_path / "models")
    assert refresh(served[mode], tmp_path / "models", ALL, backend) == files
    assert snapshot(tmp_path / "models") == before


@pytest.mark.parametrize(("mode", "backend"), CASES)
def test_an_adapter_that_is_another_now_is_served(served, replaced, tmp_path, mode, backend):
    refresh(served[mode], tmp_path / "models", ALL, backend)
    config = (tmp_path / "models").rglob("config.pbtxt")
    inodes = {path: path.stat().st_ino for path in config}
    refresh(replaced[mode], tmp_path / "models", ALL, backend)
    write_repository(replaced[mode], tmp_path / "other", name="m", backend=backend)
    problems = check_repository(tmp_path / "models")
    assert not any(problems.values()), problems
    if backend == "python":  # changed while it is served: its folder stays
        assert inodes == {path: path.stat().st_ino for path in inodes}
        first, second = (
            json.loads((tmp_path / name / "m/1/export/serving.json").read_text())["adapters"]
            for name in ("models", "other")
        )
        assert first == second
    else:
        assert snapshot(tmp_path / "models") == snapshot(tmp_path / "other")
    assert stagings(tmp_path) == []


@pytest.mark.parametrize(("mode", "backend"), CASES[:3])
def test_an_adapter_that_is_gone_is_served_no_longer(served, tmp_path, mode, backend):
    export, models = tmp_path / "export", tmp_path / "models"
    shutil.copytree(served[mode], export)
    refresh(export, models, ("a", "b", "c"), backend)
    (models / "foreign").mkdir()
    remove(export, "b")
    refresh(export, models, ("a", "c"), backend)
    assert (models / "foreign").is_dir()
    (models / "foreign").rmdir()
    write_repository(export, tmp_path / "other", name="m", backend=backend)
    assert snapshot(models) == snapshot(tmp_path / "other")
    remove_models(models, "m", progress=Silent())
    assert list(models.iterdir()) == []


def test_a_damaged_file_and_other_settings_are_written_anew(served, tmp_path):
    export, models = served["swappable"], tmp_path / "models"
    refresh(export, models, ("a", "b"))
    (weights,) = (models / "m/1/export/weights").glob("*")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    refresh(export, models, ("a", "b"))
    assert not any(check_repository(models).values())
    refresh(export, models, ("a", "b"), settings=RepositoryOptions(max_batch_size=3))
    assert "max_batch_size: 3" in (models / "m/config.pbtxt").read_text()
    refresh(export, models, ("a", "b"), settings=RepositoryOptions(max_batch_size=3))


def test_a_model_for_each_adapter_gives_way_to_one_of_all(served, tmp_path):
    export, models = served["merged"], tmp_path / "models"
    refresh(export, models, ("a", "b", "c"), "onnxruntime")
    assert sorted(each.name for each in models.iterdir()) == ["m-a", "m-b", "m-c"]
    refresh(export, models, ("a", "b", "c"), "python")
    assert [each.name for each in models.iterdir()] == ["m"]
