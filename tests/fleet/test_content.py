"""Hashes of folders: what they depend on, and that they are remembered rightly."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lora_export.core.errors import InputError
from lora_export.fleet.content import ContentHashes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two files, one below."""
    root = tmp_path / "folder"
    (root / "below").mkdir(parents=True)
    (root / "one").write_bytes(b"1")
    (root / "below" / "two").write_bytes(b"2")
    return root


def test_names_and_contents_count_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    hashes = ContentHashes(tmp_path / "known.json")
    first = hashes.of(folder)
    (folder / ".hidden").write_bytes(b"x")
    os.utime(folder / "one", (1, 1))
    assert ContentHashes(tmp_path / "none").of(folder) == first
    (folder / "one").rename(folder / "three")
    assert ContentHashes(tmp_path / "none").of(folder) != first
    (folder / "three").rename(folder / "one")
    (folder / "one").write_bytes(b"3")
    assert hashes.of(folder) != first


def test_what_is_remembered_is_read_only_where_it_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "known.json"
    hashes = ContentHashes(known)
    first = hashes.of(folder)
    hashes.save()
    read: list[str] = []
    from lora_export.fleet import content

    real = content.sha256_of_file
    monkeypatch.setattr(
        content, "sha256_of_file", lambda path: read.append(path.name) or real(path)
    )
    assert ContentHashes(known).of(folder) == first
    assert not read
    (folder / "below" / "two").write_bytes(b"x")
    assert ContentHashes(known).of(folder) != first
    assert read == ["two"]


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"a": 1}', b"\xff"])
def test_a_damaged_memory_is_as_none(raw: bytes, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "known.json").write_bytes(raw)
    expected = ContentHashes(tmp_path / "none").of(folder)
    assert ContentHashes(tmp_path / "known.json").of(folder) == expected


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="gone"):
        ContentHashes(tmp_path / "none").of(folder)
    (folder / "gone").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match="pipe"):
        ContentHashes(tmp_path / "none").of(folder)
