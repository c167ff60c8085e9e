"""Downloads are checked before they are used; another file than the locked one is one sentence."""

from __future__ import annotations

import hashlib
import zipfile
from typing import TYPE_CHECKING

import pytest

from tools.locked_download import download

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is all that pip looks at, with one wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing.py", "")
        archive.writestr(
            "thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
        )
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return wheel


def lock(folder: Path, version: str, sha256: str) -> str:
    file = folder / "thing.lock"
    file.write_text(f"thing=={version} \\\n    --hash=sha256:{sha256}\n")
    return str(file)


def test_the_locked_file_is_downloaded(index, tmp_path):
    sha256 = hashlib.sha256(index.read_bytes()).hexdigest()
    (found,) = download(lock(tmp_path, "1.0", sha256), tmp_path)
    assert found.read_bytes() == index.read_bytes()


def test_another_file_is_refused_in_one_sentence(index, tmp_path):
    with pytest.raises(SystemExit) as caught:
        download(lock(tmp_path, "1.0", "0" * 64), tmp_path)
    found = hashlib.sha256(index.read_bytes()).hexdigest()
    text = str(caught.value.code)
    assert text.startswith(f"error: {index.name} has SHA-256 {found}, which is not in thing.lock")
    assert text.endswith("nothing was used")
    assert "\n" not in text
    assert list(tmp_path.glob("*.whl")) == []


def test_what_no_index_has_is_one_sentence(index, tmp_path):
    with pytest.raises(SystemExit) as caught:
        download(lock(tmp_path, "2.0", "0" * 64), tmp_path)
    text = str(caught.value.code)
    assert text.startswith("error: pip cannot download what thing.lock names: ")
    assert "thing==2.0" in text
    assert "\n" not in text
