"""Tiny exports of each mode for model repositories, verified, so that they have golden outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.commands.add import add
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.manifest import read_manifest
from lora_export.core.safetensors_file import read_header
from lora_export.core.safetensors_write import write_tensors
from lora_export.core.tensors import MemoryTensor, read_all
from lora_export.ondevice.judge.golden_files import read_golden
from lora_export.triton.warmup import golden_of
from tests.helpers.builds import build

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lora_export.ondevice.judge.golden_files import Golden
    from tests.helpers.models import TinyModels

__all__ = [
    "CLOSE",
    "MODES",
    "goldens",
    "grown_exports",
    "replaced_exports",
    "served_exports",
    "variant",
]

MODES: Final = ("merged", "swappable", "batched")
CLOSE: Final = {"rtol": 2e-5, "atol": 2e-6}


def served_exports(
    tiny: TinyModels, root: Path, verified: Collection[str] = MODES
) -> dict[str, Path]:
    """Return an export of each mode with three adapters: ranks differ, ``c`` is DoRA.

    Those of `verified` modes have golden outputs.
    """
    base = tiny.base("bert", "text-classification", tokenizer=True)
    adapters = {
        "a": tiny.adapter(base, seed=21),
        "b": tiny.adapter(base, seed=22, r=7, use_rslora=True),
        "c": tiny.adapter(base, seed=23, r=2, alpha=3, use_dora=True),
    }
    return {
        mode: build(
            base, adapters, root / mode, mode=mode, verify={"enabled": mode in verified}
        ).output
        for mode in MODES
    }


def grown_exports(tiny: TinyModels, exports: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Return copies of the exports in `folder` with a further adapter, ``new``."""
    return _changed_exports(tiny, exports, folder, "new", seed=5)


def replaced_exports(
    tiny: TinyModels, exports: Mapping[str, Path], folder: Path
) -> dict[str, Path]:
    """Return copies of the exports in `folder` with another adapter called ``a``."""
    return _changed_exports(tiny, exports, folder, "a", seed=8)


def _changed_exports(
    tiny: TinyModels, exports: Mapping[str, Path], folder: Path, name: str, *, seed: int
) -> dict[str, Path]:
    base = tiny.base("bert", "text-classification", tokenizer=True)
    adapter = variant(tiny.adapter(base, seed=21), folder / "adapter", seed)
    found = {}
    for mode, export in exports.items():
        found[mode] = Path(shutil.copytree(export, folder / mode))
        replace = name in read_manifest(export).adapters
        add(found[mode], [AdapterSpec(name=name, source=str(adapter))], base=base, replace=replace)
    return found


def goldens(export: Path) -> dict[str, Golden]:
    """Return the golden inputs and outputs of the base and of each adapter."""
    manifest = read_manifest(export)
    files = {name: golden_of(manifest, name) for name in ("base", *manifest.adapters)}
    return {name: read_golden(export / str(file)) for name, file in files.items() if file}


def variant(adapter: Path, folder: Path, seed: int) -> Path:
    """Write a copy of a PEFT adapter with other values; return it."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_model.safetensors"
    tensors, metadata = read_header(path)
    random = np.random.default_rng(seed)
    changed: dict[str, Any] = {}
    for name, tensor in tensors.items():
        values = read_all(tensor)
        moved = values * random.uniform(0.5, 1.5, values.shape).astype(values.dtype)
        changed[name] = MemoryTensor(name, tensor.dtype, moved)
    path.unlink()
    write_tensors(path, changed, metadata)
    json.loads((folder / "adapter_config.json").read_text())
    return folder
