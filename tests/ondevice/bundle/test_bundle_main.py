"""The program of a bundle: an error of any kind is one message with an exit code."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lora_export.ondevice.bundle import main as entry
from lora_export.ondevice.bundle.bundle_index import Index, Member, require_files
from lora_export.ondevice.device_errors import BundleError


def refuse(*_: object) -> bool:
    """Raise what a folder raises that may not be searched."""
    raise PermissionError(errno.EACCES, "Permission denied", "weights/base.safetensors")


def test_an_error_of_the_system_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry, "_run", refuse)
    assert entry.main(tmp_path, ["files"]) == 3
    printed = capsys.readouterr().err
    assert printed.startswith("error: cannot access 'weights/base.safetensors': Permission denied")
    assert "Traceback" not in printed


def test_a_file_that_may_not_be_looked_at_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_symlink", refuse)
    files = {"weights/base.safetensors": Member(sha256="0" * 64, size_bytes=1)}
    index = Index("name", "digest", "tool", files, None)  # type: ignore[arg-type]  # not looked at
    with pytest.raises(BundleError, match=r"'weights/base.safetensors' .* Permission denied"):
        require_files(tmp_path, index, lambda _: None)
