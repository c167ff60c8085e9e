"""Archives: the same bytes each time, what is hostile or damaged refused by name, nothing left."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.bundle import packing as module
from lora_export.bundle.packing import unpack, verify_bundle
from lora_export.core.errors import BundleError, StorageError, UnsupportedError
from tests.cli.running import call, snapshot, stagings
from tests.helpers.bundles import pack_plain, rewritten

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return pack_plain(tmp_path / "plain.tar")


def same(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member, data


def refused(capsys, path: Path, *words: str, code: int = 3) -> None:
    """Require that verify and unpack refuse a bundle in one message, and that nothing is left."""
    out = path.parent / "unpacked"
    for arguments in (("verify", path), ("unpack", path, "--out", out)):
        result = call(capsys, "bundle", *arguments, "--quiet")
        assert result.code == code, result.err
        for word in words:
            assert word in result.message
        assert len(result.message) < 1000
    assert not out.exists()
    assert stagings(path.parent) == []


def test_gnu_tar_and_python_read_it(archive, tmp_path):
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "xf", archive, "-C", tmp_path / "gnu"], check=True)
    with tarfile.open(archive) as stream:
        stream.extractall(tmp_path / "python", filter="data")
    unpack(archive, tmp_path / "ours")
    contents = snapshot(tmp_path / "ours")
    assert contents == snapshot(tmp_path / "gnu" / "plain") == snapshot(tmp_path / "python/plain")
    assert contents["weights/a.bin"] == b"weights " * 100


@pytest.mark.parametrize("name", ["plain.tar", "plain.tar.gz"])
def test_the_same_files_are_the_same_bytes(tmp_path, name, monkeypatch):
    first = pack_plain(tmp_path / name).read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    (tmp_path / "other").mkdir()
    assert pack_plain(tmp_path / "other" / name).read_bytes() == first
    with tarfile.open(tmp_path / name) as stream:
        for member in stream.getmembers():
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            assert member.name.startswith("plain/")
        names = [member.name for member in stream.getmembers()]
    assert names == ["plain/bundle.json", *sorted(names[1:])]


def test_verify_returns_the_digest_that_pack_printed(archive, capsys):
    digest = verify_bundle(archive).digest
    assert call(capsys, "bundle", "verify", archive, "--sha256", digest).code == 0
    result = call(capsys, "bundle", "verify", archive, "--sha256", "0" * 64)
    assert result.code == 3
    assert digest in result.message


def _link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.BLKTYPE, "a block device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "of an unknown kind"),
    ],
)
@pytest.mark.parametrize("name", ["plain/a.onnx", "plain/zz"])
def test_what_is_no_plain_file_is_refused(archive, capsys, kind, words, name):
    more = ((_link(name, kind, "/etc/passwd"), b""),)
    path = rewritten(archive, lambda m, d: None if m.name == name else (m, d), more=more)
    refused(capsys, path, name, words)


@pytest.mark.parametrize(
    "name",
    ["plain/../../escaped", "/escaped", "../escaped", "plain//a.onnx", "plain/./a", "a.onnx",
     "plain/a b", "plain/a\\b", "other/a.onnx", "plain/bundle.json", "plain/new"],
)  # fmt: skip
def test_a_member_that_does_not_belong_is_refused(archive, capsys, name):
    path = rewritten(archive, same, more=((tarfile.TarInfo(name), b""),))
    refused(capsys, path, repr(name.removeprefix("plain/"))[1:-1])
    assert not (archive.parent.parent / "escaped").exists()


def test_a_member_that_comes_twice_is_refused(archive, capsys):
    with tarfile.open(archive) as stream:
        member: Any = stream.getmember("plain/a.onnx")
        data = stream.extractfile(member).read()
    refused(capsys, rewritten(archive, same, more=((member, data),)), "plain/a.onnx", "twice")


def test_a_member_that_is_missing_is_refused(archive, capsys):
    path = rewritten(archive, lambda m, d: None if m.name == "plain/a.onnx" else (m, d))
    refused(capsys, path, "has no 'a.onnx'")


def test_the_index_has_to_come_first(archive, capsys):
    path = rewritten(archive, lambda m, d: None if m.name.endswith("bundle.json") else (m, d))
    refused(capsys, path, "does not begin with bundle.json")


def _edited(archive: Path, change, *, sealed: bool = True) -> Path:
    """Return the archive with an index that somebody edited; `sealed`: its digest too."""

    def edit(member, data):
        if not member.name.endswith("/bundle.json"):
            return member, data
        table = json.loads(data)
        change(table)
        if sealed:
            rest = {key: value for key, value in table.items() if key != "sha256"}
            plain = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
            table["sha256"] = hashlib.sha256(plain).hexdigest()
        return member, json.dumps(table).encode()

    return rewritten(archive, edit)


_RANGE = {"x": {"min": [9], "opt": [1], "max": [1]}}


def _engine(**settings: Any) -> dict[str, Any]:
    return {"onnx": "a.onnx", "weights": [], "settings": {"precision": "float32", **settings},
            "refit": {}, "defaults": None}  # fmt: skip


def test_an_edited_index_is_refused(archive, capsys):
    path = _edited(archive, lambda t: t["latency"].update(max_ratio=99.0), sealed=False)
    refused(capsys, path, "was edited")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["files"].update({"../x": {"sha256": "0" * 64, "bytes": 0}}), "'../x'"),
        (lambda t: t["files"].update({"/x": {"sha256": "0" * 64, "bytes": 0}}), "'/x'"),
        (lambda t: t["files"].update({"bundle.json": {"sha256": "0" * 64, "bytes": 0}}), "itself"),
        (lambda t: t["files"].update({"a.onnx/b": {"sha256": "0" * 64, "bytes": 0}}), "folder"),
        (lambda t: t["files"]["a.onnx"].update(bytes=-1), "-1 bytes"),
        (lambda t: t["files"]["a.onnx"].update(bytes=True), "True bytes"),
        (lambda t: t["files"]["a.onnx"].update(sha256="0"), "no SHA-256"),
        (lambda t: t["files"].update({"a.onnx": 7}), "no SHA-256"),
        (lambda t: t.update(name="../up"), "'../up'"),
        (lambda t: t.update(name=".."), "'..'"),
        (lambda t: t.update(files=[]), "'files'"),
        (lambda t: t.pop("graphs"), "graphs"),
        (lambda t: t["graphs"]["a"].update(onnx="../../etc/x.onnx"), "etc/x.onnx"),
        (lambda t: t["checks"]["base"].update(golden="/etc/passwd"), "/etc/passwd"),
        (lambda t: t["checks"]["base"].update(graph="gone"), "'gone'"),
        (lambda t: t["checks"].clear(), "'base'"),
        (lambda t: t["latency"].update(rounds="many"), "damaged"),
        (lambda t: t["latency"].update(rounds=0), "0 rounds"),
        (lambda t: t["latency"].update(max_ratio=float("nan")), "nan"),
        (lambda t: t["latency"].update(max_ratio=float("inf")), "inf"),
        (lambda t: t["latency"].update(rounds=10**12), "1000000000000 rounds"),
        (lambda t: t["checks"]["base"].update(buffers={"x": [1, 2, "float32"]}), "not a cache"),
        (lambda t: t["checks"]["base"].update(refit="weights/a.bin"), "'base'"),
        (lambda t: t["latency"].update(feeds="../secret.npz"), "secret.npz"),
        (lambda t: t.update(format="zip"), "not the index"),
        (lambda t: t.update(target="../../up"), "'../../up'"),
        (lambda t: t["graphs"].update({"../up": t["graphs"]["a"]}), "'../up'"),
        (lambda t: t["graphs"]["a"].update(engine=_engine(precision=7, more=1)), "build settings"),
        (lambda t: t["graphs"]["a"].update(engine=_engine(profiles=[_RANGE])), "min 9, opt 1"),
        (lambda t: t["checks"]["base"]["reading"].update(outputs=[]), "nothing is compared"),
        (lambda t: t["checks"]["base"].update(reason=None), "no 'golden', and no reason"),
        (lambda t: t["latency"].update(reason=None), "no 'feeds', and no reason"),
        (lambda t: t["files"].update({"A.onnx": t["files"]["a.onnx"]}), "case alone"),
        (lambda t: t["files"].update({"Bundle.json": t["files"]["a.onnx"]}), "case alone"),
    ],
)
def test_an_index_that_says_what_it_must_not_is_refused(archive, capsys, change, words):
    refused(capsys, _edited(archive, change), words)


def test_an_index_of_a_newer_version_is_not_supported(archive, capsys):
    path = _edited(archive, lambda t: t.update(format_version=4))
    refused(capsys, path, "format_version 4", code=4)


def test_an_index_of_version_1_is_read(archive, capsys):
    path = _edited(archive, lambda t: t.update(format_version=1))
    assert call(capsys, "bundle", "verify", path).code == 0


def test_a_file_of_another_content_or_size_is_refused(archive, capsys):
    def other(data: bytes):
        return rewritten(archive, lambda m, d: (m, data if m.name == "plain/a.onnx" else d))

    refused(capsys, other(b"grapH"), "a.onnx", "its SHA-256 differs")
    refused(capsys, other(b"graph and more"), "a.onnx", "14 bytes", "5")


def test_every_truncation_is_refused(tmp_path):
    for name in ("plain.tar", "plain.tar.gz"):
        path = pack_plain(tmp_path / name)
        whole = path.read_bytes()
        used = len(whole.rstrip(b"\0")) if name.endswith(".tar") else len(whole)
        for size in range(0, used, 97):
            path.write_bytes(whole[:size])
            with pytest.raises(BundleError):
                unpack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["plain.tar", "plain.tar.gz"])
def test_a_flipped_bit_is_refused_or_harmless(tmp_path, name):
    path = pack_plain(tmp_path / name)
    whole = path.read_bytes()
    unpack(path, tmp_path / "good")
    good = snapshot(tmp_path / "good")
    for position in range(0, len(whole.rstrip(b"\0")), 41):
        damaged = bytearray(whole)
        damaged[position] ^= 0x04
        path.write_bytes(bytes(damaged))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        try:
            unpack(path, tmp_path / "out")
        except (BundleError, UnsupportedError):  # a bit may make version 1 version 5
            assert not (tmp_path / "out").exists()
        else:  # such as gzip's byte for the operating system
            assert snapshot(tmp_path / "out") == good


def test_something_behind_the_end_is_refused(archive, capsys):
    archive.write_bytes(archive.read_bytes() + b"\0" * 20480 + b"more")
    refused(capsys, archive, "after its end")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, capsys):
    """32 MB of zeros in a gzip of some kB: more than a hundred times as much."""
    path = pack_plain(tmp_path / "bomb.tar.gz", zeros=bytes(32 << 20))
    assert path.stat().st_size * 100 < 32 << 20
    refused(capsys, path, "would unpack to")


def test_a_bomb_behind_a_modest_index_is_refused_at_once(archive, tmp_path, capsys):
    """The index tells of 5 bytes, the archive of 4 GB: they are not read."""
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(archive) as source:
        index: Any = source.extractfile("plain/bundle.json")
        raw = index.read()
    first, big = tarfile.TarInfo("plain/bundle.json"), tarfile.TarInfo("plain/a.onnx")
    first.size, big.size = len(raw), 4 << 30
    with gzip.open(path, "wb") as stream:
        stream.write(first.tobuf(tarfile.GNU_FORMAT) + raw + bytes(-len(raw) % 512))
        stream.write(big.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):
            stream.write(bytes(1 << 20))
    refused(capsys, path, "a.onnx", str(4 << 30))


def test_an_index_of_any_size_is_not_read(tmp_path, capsys):
    path = tmp_path / "bomb.tar"
    member = tarfile.TarInfo("plain/bundle.json")
    member.size = 1 << 40
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    refused(capsys, path, "index", "larger")


def test_what_is_no_archive_is_refused(tmp_path, capsys):
    for number, data in enumerate((b"", b"no archive " * 100, b"\x1f\x8b no gzip", bytes(10240))):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(data)
        refused(capsys, path)
    refused(capsys, tmp_path / "gone.tar", "gone.tar", "No such file")


def test_a_full_disk_leaves_nothing(archive, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="100 are free"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert stagings(tmp_path) == []


def test_unpacking_overwrites_nothing(archive, tmp_path, capsys):
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "mine").write_text("kept")
    result = call(capsys, "bundle", "unpack", archive, "--out", tmp_path / "unpacked")
    assert result.code == 3
    assert "not an empty folder" in result.message
    assert snapshot(tmp_path / "unpacked") == {"mine": b"kept"}


def test_links_in_an_unpacked_bundle_are_refused(archive, tmp_path, capsys):
    unpack(archive, tmp_path / "out")
    (tmp_path / "elsewhere").write_bytes(b"graph")
    (tmp_path / "out" / "a.onnx").unlink()
    (tmp_path / "out" / "a.onnx").symlink_to(tmp_path / "elsewhere")
    result = call(capsys, "bundle", "verify", tmp_path / "out")
    assert result.code == 3
    assert "'a.onnx'" in result.message
    assert "link" in result.message
    shutil.move(tmp_path / "out" / "weights", tmp_path / "moved")
    (tmp_path / "out" / "weights").symlink_to(tmp_path / "moved")
    (tmp_path / "out" / "a.onnx").unlink()
    shutil.copy(tmp_path / "elsewhere", tmp_path / "out" / "a.onnx")
    result = call(capsys, "bundle", "verify", tmp_path / "out")
    assert result.code == 3
    assert "weights/a.bin" in result.message


@pytest.mark.parametrize(
    "name",
    ["numpy.py", "numpy/__init__.py", "lora_export/ondevice/__pycache__/main.cpython-310.pyc",
     "lora_export/more.py", "tensorrt.abi3.so"],
)  # fmt: skip
def test_code_that_the_index_does_not_name_is_refused(archive, tmp_path, capsys, name):
    """Python looks beside the program first: it would be run before anything is compared."""
    unpack(archive, tmp_path / "out")
    (tmp_path / "out" / "engines").mkdir()
    (tmp_path / "out" / "engines" / "a.plan").write_bytes(b"what a run leaves")
    (tmp_path / "out" / "report.tensorrt.json").write_text("{}")
    assert call(capsys, "bundle", "verify", tmp_path / "out").code == 0
    (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / name).write_bytes(b"")
    result = call(capsys, "bundle", "verify", tmp_path / "out")
    assert result.code == 3
    assert repr(name) in result.message
    assert "code that its index does not name" in result.message


def test_a_folder_that_is_a_link_is_refused(archive, tmp_path, capsys):
    unpack(archive, tmp_path / "out")
    (tmp_path / "numpy").mkdir()
    (tmp_path / "out" / "numpy").symlink_to(tmp_path / "numpy")
    result = call(capsys, "bundle", "verify", tmp_path / "out")
    assert result.code == 3
    assert "'numpy'" in result.message
    assert "a link" in result.message


def test_a_pipe_in_an_unpacked_bundle_is_not_read(archive, tmp_path, capsys):
    unpack(archive, tmp_path / "out")
    (tmp_path / "out" / "a.onnx").unlink()
    os.mkfifo(tmp_path / "out" / "a.onnx")
    result = call(capsys, "bundle", "verify", tmp_path / "out")
    assert result.code == 3
    assert "it is a named pipe" in result.message
    for pipe, bundle in (("out/bundle.json", "out"), ("pipe.tar", "pipe.tar")):
        (tmp_path / pipe).unlink(missing_ok=True)
        os.mkfifo(tmp_path / pipe)
        result = call(capsys, "bundle", "verify", tmp_path / bundle)
        assert result.code == 3
        assert "it is a named pipe" in result.message


def test_large_files_have_sizes_in_base_256():
    from lora_export.bundle.tar_file import header_of, read_entries

    header = header_of("big", "weights/base.safetensors", 9 << 30, 0o644)
    assert len(header) == 512
    parsed = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert (parsed.name, parsed.size) == ("big/weights/base.safetensors", 9 << 30)
    entry = next(read_entries(io.BytesIO(header), "here"))
    assert entry.size_bytes == 9 << 30


def test_a_wrong_checksum_of_gzip_is_no_error_of_the_disk(tmp_path):
    path = pack_plain(tmp_path / "plain.tar.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(4) + whole[-4:])  # the CRC behind the data
    with pytest.raises(BundleError, match="is damaged: CRC"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
