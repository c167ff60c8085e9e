"""Adapters added to and removed from a repository, on disk; see end_to_end/triton for a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_export.commands.add import add
from lora_export.commands.remove import remove
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.triton.check_repository import check_repository
from lora_export.triton.find_models import versions_of
from lora_export.triton.repository import write_repository
from lora_export.triton.repository_options import RepositoryOptions
from tests.cli.running import call, snapshot, stagings
from tests.helpers.triton import grown_exports, variant


@pytest.fixture(scope="module")
def grown(served, tiny, tmp_path_factory) -> dict[str, Path]:
    """The exports with a further adapter, ``new``."""
    return grown_exports(tiny, served, tmp_path_factory.mktemp("grown"))


def index_of(repository: Path, model: str) -> dict[str, object]:
    table: dict[str, object] = json.loads(
        (repository / model / "1/export/serving.json").read_text()
    )
    return table


@pytest.mark.parametrize("mode", ["merged", "swappable", "batched"])
def test_added_and_removed_a_python_model_is_what_it_was(served, grown, tmp_path, capsys, mode):
    repository = tmp_path / "models"
    write_repository(served[mode], repository, name="m", backend="python")
    before = snapshot(repository)
    words = ("--repository", repository, "--json")
    result = call(capsys, "triton", "add", grown[mode], "new", *words)
    assert result.document == {
        "model": "m", "models": [], "adapters": ["a", "b", "c", "new"], "reload": False,
    }  # fmt: skip
    assert sorted(index_of(repository, "m")["adapters"]) == ["a", "b", "c", "new"]
    assert check_repository(repository) == {"m": []}
    assert call(capsys, "triton", "remove", "new", *words).document["adapters"] == ["a", "b", "c"]
    assert check_repository(repository) == {"m": []}
    if mode != "batched":  # whose stacks keep the row
        assert snapshot(repository) == before
    assert stagings(tmp_path) == []


def test_a_model_for_each_adapter_gets_one_like_its_siblings(served, grown, tmp_path, capsys):
    repository = tmp_path / "models"
    settings = RepositoryOptions(max_batch_size=5, instances=3, priority=2)
    write_repository(served["merged"], repository, name="m", text=True, settings=settings)
    before = snapshot(repository)
    result = call(capsys, "triton", "add", grown["merged"], "new", "--repository", repository)
    assert result.code == 0
    assert "v2/repository/models/m-new/load" in result.out
    own = (repository / "m-new/config.pbtxt").read_text()
    other = (repository / "m-a/config.pbtxt").read_text()
    for line in ("max_batch_size: 5", "  count: 3", "    priority: 2"):
        assert line in own.splitlines()
        assert line in other.splitlines()
    assert (repository / "m-new-text/config.pbtxt").is_file()
    assert set(check_repository(repository)) == {
        *(f"m-{each}{text}" for each in ("a", "b", "c", "new") for text in ("", "-text")),
        "m-tokenizer",
    }
    assert not any(check_repository(repository).values())
    assert call(capsys, "triton", "remove", "new", "--repository", repository).code == 0
    assert snapshot(repository) == before


def test_a_batched_graph_for_onnxruntime_gets_a_version(served, grown, tmp_path, capsys):
    repository = tmp_path / "models"
    write_repository(served["batched"], repository, name="m", backend="onnxruntime")
    for number in (2, 3):
        result = call(capsys, "triton", "add", grown["batched"], "--repository", repository)
        assert result.code == 0
        assert (repository / f"m/{number}/model.onnx").is_file()
        assert check_repository(repository) == {"m": []}
    assert not (repository / "m/1").exists()  # two are kept
    code = call(capsys, "triton", "remove", "a", "--repository", repository)
    assert (code.code, "is a row of the batched graph" in code.message) == (4, True)


def test_what_would_be_answered_wrongly_is_refused(served, grown, tiny, tmp_path, capsys):
    repository = tmp_path / "models"
    settings = RepositoryOptions(response_cache=True)
    write_repository(served["swappable"], repository, name="m", settings=settings)
    base = tiny.base("bert", "text-classification", tokenizer=True)
    changed = Path(shutil.copytree(grown["swappable"], tmp_path / "changed"))
    other = AdapterSpec(name="a", source=str(tiny.adapter(base, seed=99)))
    add(changed, [other], base=base, replace=True)
    words = ("--repository", repository)
    taken = call(capsys, "triton", "add", changed, "a", *words)
    assert (taken.code, "already" in taken.message) == (3, True)
    result = call(capsys, "triton", "add", changed, "a", "--replace", *words)
    assert (result.code, "response cache" in result.message) == (4, True)
    assert call(capsys, "triton", "remove", "a", *words).code == 0
    result = call(capsys, "triton", "add", changed, "a", *words)
    assert (result.code, "response cache" in result.message) == (4, True)
    assert call(capsys, "triton", "add", served["swappable"], "a", *words).code == 0  # the same
    assert check_repository(repository) == {"m": [], "m-cached": []}


def test_without_a_response_cache_an_adapter_is_replaced(served, tiny, tmp_path, capsys):
    repository = tmp_path / "models"
    write_repository(served["swappable"], repository, name="m")
    before = index_of(repository, "m")["adapters"]
    base = tiny.base("bert", "text-classification", tokenizer=True)
    changed = Path(shutil.copytree(served["swappable"], tmp_path / "changed"))
    add(changed, [AdapterSpec(name="a", source=str(tiny.adapter(base, seed=99)))], base=base,
        replace=True)  # fmt: skip
    words = ("--repository", repository)
    assert call(capsys, "triton", "add", changed, "a", "--replace", *words).code == 0
    after = index_of(repository, "m")["adapters"]
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]
    packs = {each.name for each in (repository / "m/1/export/adapters").iterdir()}
    assert packs == {Path(line["file"]).name for line in after.values()}


def test_what_is_not_there_is_said(served, tiny, tmp_path, capsys):
    repository = tmp_path / "models"
    write_repository(served["swappable"], repository, name="m")
    result = call(capsys, "triton", "remove", "nobody", "--repository", repository)
    assert (result.code, "nobody" in result.message) == (3, True)
    result = call(capsys, "triton", "add", served["swappable"], "nobody", "--repository",
                  repository)  # fmt: skip
    assert (result.code, "nobody" in result.message) == (3, True)
    result = call(capsys, "triton", "add", served["swappable"], "a", "--repository",
                  tmp_path / "absent")  # fmt: skip
    assert (result.code, "not a model repository" in result.message) == (3, True)
    write_repository(served["swappable"], repository, name="second")
    result = call(capsys, "triton", "remove", "a", "--repository", repository)
    assert (result.code, "--name" in result.message) == (2, True)


def test_an_adapter_that_the_export_lost_stops_a_change_of_the_stacks(
    served, grown, tmp_path, capsys
):
    repository = tmp_path / "models"
    write_repository(served["batched"], repository, name="m")
    export = Path(shutil.copytree(grown["batched"], tmp_path / "out"))
    remove(export, "b")
    before = snapshot(repository)
    result = call(capsys, "triton", "add", export, "new", "--repository", repository)
    assert (result.code, "no longer holds 'b'" in result.message) == (3, True)
    assert snapshot(repository) == before


@pytest.fixture(scope="module")
def exchanged(served, tiny, tmp_path_factory) -> Path:
    """The batched export with another adapter called ``a``, and a further one."""
    base = tiny.base("bert", "text-classification", tokenizer=True)
    folder = tmp_path_factory.mktemp("exchanged")
    export = Path(shutil.copytree(served["batched"], folder / "out"))
    other = AdapterSpec(name="a", source=str(tiny.adapter(base, seed=99)))
    add(export, [other], base=base, replace=True)
    new = variant(tiny.adapter(base, seed=21), folder / "new", 5)
    add(export, [AdapterSpec(name="new", source=str(new))], base=base)
    return export


def test_stacks_do_not_exchange_an_adapter_that_nobody_named(served, exchanged, tmp_path, capsys):
    repository = tmp_path / "models"
    write_repository(served["batched"], repository, name="m")
    before = snapshot(repository)
    words = ("--repository", repository)
    result = call(capsys, "triton", "add", exchanged, "new", *words)
    assert (result.code, "another adapter than 'm' serves" in result.message) == (3, True)
    assert snapshot(repository) == before
    result = call(capsys, "triton", "add", exchanged, "new", "a", *words)
    assert (result.code, "already" in result.message) == (3, True)
    assert call(capsys, "triton", "add", exchanged, "new", "a", "--replace", *words).code == 0
    assert check_repository(repository) == {"m": []}


def test_a_response_cache_keeps_rows_to_their_names(served, exchanged, tmp_path, capsys):
    repository = tmp_path / "models"
    settings = RepositoryOptions(response_cache=True)
    write_repository(served["batched"], repository, name="m", settings=settings)
    words = ("--repository", repository)
    result = call(capsys, "triton", "add", exchanged, "a", "--replace", *words)
    assert (result.code, "response cache" in result.message) == (4, True)
    assert call(capsys, "triton", "remove", "a", *words).code == 0
    result = call(capsys, "triton", "add", exchanged, "a", *words)
    assert (result.code, "response cache" in result.message) == (4, True)
    assert call(capsys, "triton", "add", served["batched"], "a", *words).code == 0  # the same
    assert check_repository(repository) == {"m": [], "m-cached": []}


def test_a_response_cache_tells_graphs_of_one_name_apart(served, grown, tiny, tmp_path, capsys):
    repository = tmp_path / "models"
    settings = RepositoryOptions(response_cache=True)
    write_repository(served["merged"], repository, name="m", settings=settings, text=True)
    base = tiny.base("bert", "text-classification", tokenizer=True)
    changed = Path(shutil.copytree(served["merged"], tmp_path / "changed"))
    other = AdapterSpec(name="a", source=str(tiny.adapter(base, seed=99)))
    add(changed, [other], base=base, replace=True)

    def versions() -> dict[str, list[str]]:
        ensembles = ("m-a-cached", "m-a-text")
        return {e: [each.name for each in versions_of(repository / e)] for e in ensembles}

    before = versions()
    words = ("--repository", repository)
    for export in (changed, served["merged"]):
        assert call(capsys, "triton", "remove", "a", *words).code == 0
        assert not list(repository.glob("m-a*"))
        assert call(capsys, "triton", "add", export, "a", *words).code == 0
        assert not any(check_repository(repository).values())
        assert (versions() == before) is (export != changed)


def test_a_response_cache_keeps_a_batched_graph_as_it_is(served, grown, tmp_path, capsys):
    repository = tmp_path / "models"
    settings = RepositoryOptions(response_cache=True)
    write_repository(
        served["batched"], repository, name="m", backend="onnxruntime", settings=settings
    )
    result = call(capsys, "triton", "add", grown["batched"], "--repository", repository)
    assert (result.code, "response cache" in result.message) == (4, True)


def test_an_adapter_may_be_called_like_a_step(served, tiny, tmp_path, capsys):
    repository = tmp_path / "models"
    write_repository(served["merged"], repository, name="m", adapters=["a"])
    base = tiny.base("bert", "text-classification", tokenizer=True)
    export = Path(shutil.copytree(served["merged"], tmp_path / "out"))
    add(export, [AdapterSpec(name="tokenizer", source=str(tiny.adapter(base, seed=21)))], base=base)
    result = call(capsys, "triton", "add", export, "tokenizer", "--repository", repository)
    assert result.code == 0
    assert check_repository(repository) == {"m-a": [], "m-tokenizer": []}
    result = call(capsys, "triton", export, "--text", "--repository", tmp_path / "second",
                  "--backend", "onnxruntime", "--name", "m")  # fmt: skip
    assert (result.code, "two models would be called 'm-tokenizer'" in result.message) == (4, True)


def test_nothing_is_written_or_deleted_outside(served, grown, tmp_path, capsys):
    repository = tmp_path / "models"
    write_repository(served["swappable"], repository, name="m")
    precious = f"precious-{'0' * 12}.safetensors"
    for inside in ("1/export/adapters", "1/export", "1", ""):
        folder, outside = (
            repository / "m" / inside,
            tmp_path / f"outside-{inside.replace('/', '-')}",
        )
        folder.rename(outside)
        folder.symlink_to(outside)
        (outside / precious).write_text("mine")
        before = snapshot(outside)
        result = call(
            capsys, "triton", "add", grown["swappable"], "new", "--repository", repository
        )
        assert (result.code, "leads out of" in result.message) == (3, True)
        assert snapshot(outside) == before
        if inside != "1/export/adapters":
            result = call(capsys, "triton", "remove", "a", "--repository", repository)
            assert (result.code, "leads out of" in result.message) == (3, True)
            assert snapshot(outside) == before
        folder.unlink()
        (outside / precious).unlink()
        outside.rename(folder)


def test_a_users_own_files_beside_an_index_stay(served, grown, tmp_path, capsys):
    repository = tmp_path / "models"
    write_repository(served["swappable"], repository, name="m")
    (repository / "m/1/export/notes.txt").write_text("mine")
    (repository / "m/1/export/adapters/mine.safetensors").write_text("mine")
    words = ("--repository", repository)
    assert call(capsys, "triton", "add", grown["swappable"], "new", *words).code == 0
    assert call(capsys, "triton", "remove", "new", *words).code == 0
    assert (repository / "m/1/export/notes.txt").read_text() == "mine"
    assert (repository / "m/1/export/adapters/mine.safetensors").read_text() == "mine"
    packs = {each.name.partition("-")[0] for each in (repository / "m/1/export/adapters").iterdir()}
    assert packs == {"a", "b", "c", "mine.safetensors"}


def test_a_model_that_is_a_link_is_taken_out_and_what_it_leads_to_stays(served, tmp_path, capsys):
    repository = tmp_path / "models"
    write_repository(served["merged"], repository, name="m")
    (repository / "m-b").rename(tmp_path / "elsewhere")
    (repository / "m-b").symlink_to(tmp_path / "elsewhere")
    result = call(capsys, "triton", "remove", "b", "--repository", repository)
    assert result.code == 0
    assert not (repository / "m-b").is_symlink()
    assert (tmp_path / "elsewhere/config.pbtxt").is_file()
    assert stagings(tmp_path) == []


def test_adding_an_adapter_does_not_read_the_bases_weights_again(served, grown, tmp_path, capsys):
    repository = tmp_path / "models"
    write_repository(served["swappable"], repository, name="m")
    export = Path(shutil.copytree(grown["swappable"], tmp_path / "out"))
    weights = export / "weights/base.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # damage that only a hash shows
    result = call(capsys, "triton", "add", export, "new", "--repository", repository)
    assert result.code == 0
    code = call(capsys, "triton", export, "--repository", tmp_path / "second").code
    assert code == 3
