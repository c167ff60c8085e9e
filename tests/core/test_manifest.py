"""The manifest: names, versions, damage, and paths that stay inside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_export.core.adapter_names import check_adapter_name
from lora_export.core.errors import AdapterError, ExportDirectoryError, UnsupportedError
from lora_export.core.manifest import (
    MANIFEST_NAME,
    AdapterRecord,
    BaseRecord,
    GraphRecord,
    Manifest,
    ParameterUse,
    edit_manifest,
    is_export,
    read_manifest,
    write_manifest,
)

SHA = "ab" * 32


def manifest() -> Manifest:
    return Manifest(
        tool="lora-export 0",
        base=BaseRecord(
            source="./base",
            model_type="bert",
            model_class="BertModel",
            task="feature-extraction",
            dtype="float32",
            fingerprint=SHA,
        ),
        parameters={
            "w": [
                ParameterUse(
                    graph="base",
                    initializer="w",
                    transform=["transpose"],
                    dtype="float32",
                    shape=[2, 3],
                    module="Linear",
                )
            ]
        },
        graphs={
            "base": GraphRecord(
                mode="base",
                onnx="base.onnx",
                weights=["weights/base.safetensors"],
                opset=18,
                sha256=SHA,
            )
        },
        adapters={
            "one": AdapterRecord(
                source="a",
                format="peft",
                rank=4,
                merged_from="checkpoint",
                tensors_total=2,
                tensors_applied=2,
                missing_in_base=[],
                sha256=SHA,
            )
        },
        files={"base.onnx": SHA, "weights/base.safetensors": SHA},
    )


@pytest.fixture
def folder(tmp_path):
    write_manifest(tmp_path, manifest())
    return tmp_path


def change(folder: Path, path: tuple[Any, ...], value: Any) -> None:
    """Set one value of the manifest on disk; deletes it where the value is ``...``."""
    table = json.loads((folder / MANIFEST_NAME).read_text())
    place = table
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    (folder / MANIFEST_NAME).write_text(json.dumps(table))


def test_what_is_written_is_read(folder):
    assert read_manifest(folder) == manifest()
    assert is_export(folder)


def test_equal_manifests_are_equal_bytes(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_manifest(other, manifest())
    assert (folder / MANIFEST_NAME).read_bytes() == (other / MANIFEST_NAME).read_bytes()


def test_the_table_on_disk_is_plain_json_with_the_format_version(folder):
    table = json.loads((folder / MANIFEST_NAME).read_text())
    assert table["format_version"] == 1
    assert table["graphs"]["base"]["verification"] == "unverified"


@pytest.mark.parametrize("name", ["a", "0", "a-b_c", "x" * 64, "lora", "bases"])
def test_allowed_names(name):
    assert check_adapter_name(name) == name


@pytest.mark.parametrize("name", ["base", "swappable", "batched", "model"])
def test_reserved_names(name):
    with pytest.raises(AdapterError, match="reserved"):
        check_adapter_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "A", "-a", "_a", "a.b", "a/b", "../a", "a b", "ä", "x" * 65, "a\n", "a\0", "٣"],
)
def test_ill_formed_names(name):
    with pytest.raises(AdapterError, match="not allowed"):
        check_adapter_name(name)


def test_a_folder_without_a_manifest_is_not_an_export(tmp_path):
    assert not is_export(tmp_path)
    with pytest.raises(ExportDirectoryError, match="not an export directory"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("version", [3, 99, 10**8, 10**30])
def test_a_newer_format_is_not_supported(folder, version):
    change(folder, ("format_version",), version)
    with pytest.raises(UnsupportedError, match="format_version") as caught:
        read_manifest(folder)
    assert caught.value.exit_code == 4
    assert "Upgrade" in (caught.value.hint or "")


def test_a_newer_format_is_recognised_though_its_keys_are_unknown(folder):
    change(folder, ("format_version",), 3)
    change(folder, ("base",), ["another", "form"])
    with pytest.raises(UnsupportedError):
        read_manifest(folder)


def test_a_value_that_looks_like_a_newer_version_is_only_text(folder):
    change(folder, ("base", "source"), 'odd "format_version": 7 name')
    assert read_manifest(folder).base.source.startswith("odd")


DAMAGE: dict[str, tuple[tuple[Any, ...], Any]] = {
    "no base": (("base",), ...),
    "no graphs": (("graphs",), ...),
    "unknown key": (("surprise",), 1),
    "unknown key inside": (("graphs", "base", "surprise"), 1),
    "hash too short": (("files", "base.onnx"), "ab"),
    "hash is a number": (("files", "base.onnx"), 7),
    "opset is text": (("graphs", "base", "opset"), "x"),
    "unknown verdict": (("graphs", "base", "verification"), "verified"),
    "unknown mode": (("graphs", "base", "mode"), "magic"),
    "unknown origin": (("adapters", "one", "merged_from"), "thin air"),
    "version is text": (("format_version",), "one"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(folder, what):
    path, value = DAMAGE[what]
    change(folder, path, value)
    with pytest.raises(ExportDirectoryError, match="damaged") as caught:
        read_manifest(folder)
    assert str(path[-1]) in caught.value.message


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1}', b"[" * 99999]
)
def test_what_is_no_manifest_is_damaged(folder, data):
    (folder / MANIFEST_NAME).write_bytes(data)
    with pytest.raises(ExportDirectoryError, match="damaged"):
        read_manifest(folder)


def test_every_truncation_is_refused(folder):
    whole = (folder / MANIFEST_NAME).read_bytes()
    for size in range(0, len(whole) - 2, 7):
        (folder / MANIFEST_NAME).write_bytes(whole[:size])
        with pytest.raises(ExportDirectoryError):
            read_manifest(folder)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x"])
@pytest.mark.parametrize(
    "where",
    [("graphs", "base", "onnx"), ("graphs", "base", "weights"), ("graphs", "base", "golden")],
    ids=lambda where: where[-1],
)
def test_a_path_that_leads_outside_is_refused(folder, where, path):
    change(folder, where, [path] if where[-1] == "weights" else path)
    with pytest.raises(ExportDirectoryError, match="leads outside"):
        read_manifest(folder)


def test_a_hashed_file_outside_is_refused(folder):
    change(folder, ("files",), {"../secret": SHA})
    with pytest.raises(ExportDirectoryError, match="leads outside"):
        read_manifest(folder)


def test_a_link_that_leads_outside_is_refused(folder, tmp_path_factory):
    (folder / "weights").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ExportDirectoryError, match="leads outside"):
        read_manifest(folder)


def test_an_adapter_name_that_is_a_path_is_refused(folder):
    change(folder, ("adapters",), {"../one": {**manifest().adapters["one"].model_dump()}})
    with pytest.raises((AdapterError, ExportDirectoryError)):
        read_manifest(folder)


INCREMENT = """
import sys
from pathlib import Path
from lora_export.core.manifest import edit_manifest, write_manifest
folder = Path(sys.argv[1])
for _ in range(20):
    with edit_manifest(folder) as manifest:
        count = int(manifest.base.source)
        base = manifest.base.model_copy(update={"source": str(count + 1)})
        write_manifest(folder, manifest.model_copy(update={"base": base}))
"""


def test_edits_of_several_processes_follow_one_another(folder):
    change(folder, ("base", "source"), "0")
    processes = [
        subprocess.Popen([sys.executable, "-c", INCREMENT, folder], cwd=Path(__file__).parents[2])
        for _ in range(3)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert read_manifest(folder).base.source == "60"


def test_a_failed_edit_changes_nothing(folder):
    before = (folder / MANIFEST_NAME).read_bytes()
    with pytest.raises(RuntimeError, match="stop"), edit_manifest(folder):
        raise RuntimeError("stop")
    assert (folder / MANIFEST_NAME).read_bytes() == before
