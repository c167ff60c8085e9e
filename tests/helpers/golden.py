"""Golden files where an export has them."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from lora_export.verification.golden import golden_bytes, golden_file

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.ondevice.judge.golden_files import Golden

__all__ = ["write_golden"]


def write_golden(export_dir: Path, graph: str, golden: Golden) -> str:
    """Write the golden file of a graph; return its SHA-256."""
    path, data = export_dir / golden_file(graph), golden_bytes(golden)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return sha256(data).hexdigest()
