"""Ids of the hub: what is taken for one, what the cache gives offline, how failures are told."""

from __future__ import annotations

import errno
import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from lora_export.adapters.read_spec import name_of
from lora_export.core.errors import HubError, StorageError, UsageError
from lora_export.core.hub import hub_id_of, is_hub_id, local_path
from tests.cli.exports import manifest_of
from tests.cli.running import call

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty hub cache, with the network switched off."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def put(cache: Path, repo: str, source: Path, *, branch: str = "main") -> Path:
    """Lay a folder out as the hub's library caches it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    shutil.copytree(source, snapshot)
    (root / "refs").mkdir()
    (root / "refs" / branch).write_text(COMMIT)
    return snapshot


def test_a_folder_of_a_repository_is_found_and_recorded_with_its_commit(
    tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "made" / "runs" / "sql").mkdir(parents=True)
    (tmp_path / "made" / "runs" / "sql" / "adapter_model.safetensors").write_bytes(b"")
    snapshot = put(cache, "org/name", tmp_path / "made")
    expected = snapshot / "runs" / "sql"
    assert local_path("org/name", subfolder="runs/sql") == expected
    recorded = hub_id_of(expected)
    assert recorded == f"hf://org/name@{COMMIT}/runs/sql"
    assert local_path(recorded) == expected
    assert name_of(expected) == "sql"
    assert name_of(snapshot) == "name"


def test_a_subfolder_stays_below_the_path(tmp_path: Path) -> None:
    assert local_path("run", tmp_path, subfolder="sql") == tmp_path / "run" / "sql"
    for outside in ("../other", "a/../../b", "/etc"):
        with pytest.raises(UsageError, match="leads out"):
            local_path("run", tmp_path, subfolder=outside)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("org/name", True), ("org/name@main", True), ("org/name@v1.0", True), ("hf://gpt2", True),
        ("gpt2", False), ("/org/name", False), ("./org/name", False), ("../name", False),
        ("a/b/c", False), ("~/name", False), ("org/", False), ("", False), ("org/na me", False),
    ],
)  # fmt: skip
def test_what_is_taken_for_an_id(spec: str, expected: bool) -> None:
    assert is_hub_id(spec) is expected


def test_path_that_exists_is_a_path(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert local_path("org/name", tmp_path) == tmp_path / "org" / "name"
    assert local_path("elsewhere", tmp_path) == tmp_path / "elsewhere"


def test_cached_repository_is_found_offline(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text("{}")
    (tmp_path / "made" / "model.safetensors").write_bytes(b"")
    snapshot = put(cache, "org/name", tmp_path / "made")
    for spec in ("org/name", "org/name@main", f"hf://org/name@{COMMIT}"):
        assert local_path(spec) == snapshot
    assert hub_id_of(snapshot) == f"hf://org/name@{COMMIT}"
    assert hub_id_of(tmp_path) is None
    with pytest.raises(HubError):
        local_path("org/name@other")


@pytest.mark.parametrize("spec", ["org/none", "hf://none", "hf://a/b/c", "hf://../x"])
def test_what_is_not_to_be_had_says_so(spec: str, cache: Path) -> None:
    with pytest.raises(HubError) as caught:
        local_path(spec)
    assert spec in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 3


def test_what_the_cache_lacks_offline_names_the_switch_and_the_command(cache: Path) -> None:
    with pytest.raises(HubError) as caught:
        local_path("org/none@v1")
    assert "HF_HUB_OFFLINE" in caught.value.message
    hint = str(caught.value.hint)
    assert hint.endswith("HF_HUB_OFFLINE=0 hf download org/none --revision v1")


LONG = f"Client error '418 Teapot' for url 'https://hub/{'x' * 300}' (Request ID: 7)"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"{LONG}. Try again.\nFor more information see there.", LONG),
        (
            "\n\nBad request:\nThe name is too long. Choose another.",
            "Bad request: The name is too long",
        ),
        ("[Errno 111] Connection refused", "[Errno 111] Connection refused"),
        ("", "LookupError"),
    ],
    ids=["long", "lines", "no sentence", "empty"],
)
def test_the_library_s_first_sentence_is_shown_whole(
    monkeypatch: pytest.MonkeyPatch, cache: Path, message: str, shown: str
) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise LookupError(message)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(HubError) as caught:
        local_path("org/none")
    assert caught.value.message == (
        f"'org/none' is not a local directory, and the hub cannot be reached: {shown}"
    )
    assert str(caught.value.hint).endswith("hf download org/none")


def test_without_a_network_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    import huggingface_hub
    from huggingface_hub import constants, errors

    def fail(*_: object, **__: object) -> None:
        cause = ConnectionError("[Errno -3] Temporary failure in name resolution")
        raise errors.LocalEntryNotFoundError("Got: long. Please check it.") from cause

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        HubError, match=r"cannot be reached: \[Errno -3\] Temporary failure in name"
    ):
        local_path("org/none")


def test_export_of_ids_records_their_commits(
    tiny: TinyModels, tmp_path: Path, cache: Path, capsys
) -> None:
    base = tiny.base("bert")
    put(cache, "org/base", base)
    put(cache, "org/mine", tiny.adapter(base))
    out = tmp_path / "out"
    built = call(capsys, "export", "--base", "org/base", "--adapter", "org/mine@main", "--out", out)
    assert built.code == 0, built.err
    manifest = manifest_of(out)
    assert manifest["base"]["source"] == f"hf://org/base@{COMMIT}"
    assert manifest["adapters"]["mine"]["source"] == f"hf://org/mine@{COMMIT}"
    added = call(capsys, "add", out, "--adapter", "b=org/mine", "--base", "org/base")
    assert added.code == 0, added.err
    shown = call(capsys, "inspect", "org/base", "org/mine", "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["fit"]["fits"]
    missing = call(capsys, "export", "--base", "org/none", "--out", tmp_path / "none")
    assert missing.code == 3
    assert "org/none" in missing.err


def test_an_adapter_of_another_base_by_its_name_is_noted_everywhere(
    tiny: TinyModels, tmp_path: Path, cache: Path, capsys
) -> None:
    base = tiny.base("bert")
    adapter = tiny.adapter(base, config_edits={"base_model_name_or_path": "org/other"})
    put(cache, "org/base", base)
    out = tmp_path / "out"
    commands = (
        ("export", "--base", "org/base", "--adapter", f"a={adapter}", "--out", out),
        ("add", out, "--adapter", f"b={adapter}"),
        ("merge", "--base", "org/base", "--adapter", adapter, "--out", tmp_path / "merged"),
    )
    for arguments in commands:
        done = call(capsys, *arguments, "--json")
        assert done.code == 0, done.err
        (note,) = done.document["notes"]
        assert "names the base 'org/other', and 'org/base' is given" in note
        assert done.err.count(f"note: {note}\n") == 1
    for given in ("org/base", out):
        shown = call(capsys, "inspect", given, adapter, "--json")
        assert shown.code == 0, shown.err
        assert "'org/other'" in shown.document["fit"]["note"]
        assert "'org/other', and" in call(capsys, "inspect", given, adapter).out
    silent = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out",
                  tmp_path / "local", "--json")  # fmt: skip
    assert silent.document["notes"] == []
    assert "note:" not in silent.err


def test_folders_of_sentence_transformers_are_fetched_and_no_others() -> None:
    from huggingface_hub.utils import filter_repo_objects

    from lora_export.core import hub

    wanted = ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json",
              "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"]  # fmt: skip
    others = ["onnx/model.safetensors", "openvino/config.json", "2024-run/model.safetensors",
              "1_Pooling/deeper/config.json", "pytorch_model.bin", "1_LSTM/code.py"]  # fmt: skip
    kept = filter_repo_objects(
        wanted + others,
        allow_patterns=[*hub._FILES, *hub._MODULES],
        ignore_patterns=list(hub._BELOW),
    )
    assert list(kept) == wanted


@pytest.mark.parametrize("kind", ["pipe", "sparse", "folder", "loop"])
def test_a_damaged_reference_in_the_cache_is_refused(
    kind: str, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "made").mkdir()
    ref = put(cache, "org/name", tmp_path / "made").parents[1] / "refs" / "main"
    ref.unlink()
    if kind == "pipe":
        os.mkfifo(ref)
    elif kind == "folder":
        ref.mkdir()
    elif kind == "loop":
        ref.symlink_to("main")
    else:
        ref.touch()
        os.truncate(ref, 10 << 30)
    with pytest.raises(HubError, match="the hub's cache is damaged"):
        local_path("org/name")


@pytest.mark.parametrize("text", ["", "/", "..", "../..", "/etc", "a/b", ".", "x" * 200, "a\n"])
def test_a_reference_that_leads_elsewhere_is_refused(
    text: str, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "made").mkdir()
    ref = put(cache, "org/name", tmp_path / "made").parents[1] / "refs" / "main"
    ref.write_text(text)
    with pytest.raises(HubError, match="names no commit"):
        local_path("org/name")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_disk_that_refuses_a_download_is_no_fault_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, cache: Path, number: int, wrapped: bool
) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        refused = OSError(number, os.strerror(number), "blobs/x.incomplete")
        if wrapped:
            raise RuntimeError("Data processing error") from refused
        raise refused

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(StorageError, match="cannot write the hub's cache") as caught:
        local_path("org/name")
    assert os.strerror(number) in caught.value.message
    assert "HF_HOME" in (caught.value.hint or "")
