"""An export that adapters are added to, and what it has to be afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.manifest import read_manifest
from lora_export.exports.integrity import audit

if TYPE_CHECKING:
    from pathlib import Path


TASK = "text-classification"


def spec(name: str, folder: Path) -> AdapterSpec:
    return AdapterSpec(name=name, source=str(folder))


def files_of(export_dir: Path, name: str) -> tuple[bytes, bytes]:
    return (
        (export_dir / f"{name}.onnx").read_bytes(),
        (export_dir / "weights" / f"{name}.safetensors").read_bytes(),
    )


def intact(export_dir: Path) -> bool:
    """Whether every file has the manifest's hash and nothing else lies about."""
    found = audit(export_dir, read_manifest(export_dir), hashed=True)
    assert (found.problems, found.unlisted) == ((), ())
    assert not [path for path in export_dir.glob(".lora-export-*") if path.is_dir()]
    return True
